"""The launcher of one node: two of them train one run together, stop together, and exit with the right code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import SMALL, environment, training_lines, wait_for

from upfield.distributed.launch import free_port

SCRIPT = Path(__file__).parents[2] / "cluster" / "node.sh"


def nodes(*arguments: object) -> "list[subprocess.Popen[str]]":
    """Start two nodes of one process each."""
    shared = environment() | {"NUM_NODES": "2", "PROCESSES": "1", "MASTER_ADDR": "localhost"}
    shared |= {"MASTER_PORT": str(free_port()), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), *SMALL, "--run.trackers", "[]", *map(str, arguments)]
    return [
        subprocess.Popen(command, env=shared | {"NODE_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]


def ended(started: "list[subprocess.Popen[str]]") -> tuple[list[int], list[str]]:
    try:
        logs = [node.communicate(timeout=120)[1] for node in started]
    finally:
        for node in started:
            node.kill()
    return [node.returncode for node in started], logs


def test_two_nodes_train_one_run(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    codes, logs = ended(nodes("--data.shards", tiny_shards, "--run.out", out, "--run.max_steps", 2))
    assert codes == [0, 0], logs
    assert "2 processes on cpu" in logs[0]
    assert [line["step"] for line in training_lines(out)] == [1, 2]


@pytest.mark.slow
def test_a_signal_to_one_node_stops_both_with_the_configured_exit_code(tiny_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    long = ("--run.max_steps", 100000, "--run.epochs", 100000, "--run.checkpoint_every", 2, "--run.stopped_code", 75)
    started = nodes("--data.shards", tiny_shards, "--run.out", out, *long)
    wait_for(out / "checkpoints" / "step-00000002")
    started[1].send_signal(signal.SIGTERM)
    codes, logs = ended(started)
    assert codes == [75, 75], logs
    assert "stopped by a signal after step" in logs[0]


@pytest.mark.slow
def test_wrong_input_exits_with_2_on_every_node(tmp_path: Path) -> None:
    codes, logs = ended(nodes("--data.shards", tmp_path / "nowhere", "--run.out", tmp_path / "run"))
    assert codes == [2, 2], logs


def test_a_node_without_a_rank_says_how_to_set_one() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NODE_RANK"}
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=environment | {"NUM_NODES": "2"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "NODE_RANK: not set. Set it to 0 on the first node" in done.stderr
