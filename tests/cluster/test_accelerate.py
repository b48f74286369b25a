"""Accelerate reads each of its configurations and starts the entry script, on CPUs instead of GPUs."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from runs import command, environment, training_lines

from upfield.distributed.launch import free_port

FOLDER = Path(__file__).parents[2] / "cluster" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*"))
SHARES = {"one_gpu": 1, "eight_gpus": 8, "many_nodes": 16, "fsdp": 8, "two_cpus": 2}
# Tests have two cores instead of GPUs.
FEWER = {"eight_gpus": ("--num_processes", "2"), "fsdp": ("--num_processes", "2")}


# Says which rank it is. An import of torch takes longer than all else that these tests do.
PROBE = """\
import os, pathlib, sys
rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
pathlib.Path(sys.argv[1], f"{rank} of {processes}").touch()
"""


def launched(name: str, program: list[str], *options: str) -> "subprocess.Popen[str]":
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    return subprocess.Popen(
        [*start, *options, *program], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def training(shards: Path, out: Path) -> list[str]:
    return command(shards, out, "--run.max_steps", "2", "--run.trackers", "[]")[1:]


@pytest.fixture
def probe(tmp_path: Path) -> list[str]:
    """A script and the empty folder into which it writes which rank it is."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "ranks").mkdir()
    return [str(tmp_path / "probe.py"), str(tmp_path / "ranks")]


def ended(process: "subprocess.Popen[str]") -> str:
    try:
        log, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, log
    return log


def test_there_is_a_configuration_for_each_size() -> None:
    assert sorted(SHARES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_the_number_of_processes(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == SHARES[name]
    assert config.num_processes % config.num_machines == 0
    # The configuration that is saved with the run records the precision.
    assert config.mixed_precision == "no"


@pytest.mark.parametrize("name", ["one_gpu", "two_cpus"])
def test_a_configuration_starts_its_processes(name: str, probe: list[str], tmp_path: Path) -> None:
    ended(launched(name, probe))
    count = SHARES[name]
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {f"{rank} of {count}" for rank in range(count)}


def two_machines(program: list[str]) -> list[str]:
    """Start a program on two machines with one process each, and return what each machine printed."""
    shared = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()), "--num_processes", "2"]
    machines = [launched("many_nodes", program, "--machine_rank", rank, *shared) for rank in ("0", "1")]
    return [ended(machine) for machine in machines]


# Quick tests train one run on two machines.
@pytest.mark.slow
def test_two_machines_start_one_job(probe: list[str], tmp_path: Path) -> None:
    two_machines(probe)
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {"0 of 2", "1 of 2"}


# tests/distributed/test_split_weights.py tests what FSDP does with that file.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_gpu", "two_cpus", "eight_gpus", "fsdp"])
def test_a_configuration_trains_on_its_processes(name: str, tiny_shards: Path, tmp_path: Path) -> None:
    log = ended(launched(name, training(tiny_shards, tmp_path / "run"), *FEWER.get(name, ())))
    expected = "1 process on" if name == "one_gpu" else "2 processes on"
    assert expected in log
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1, 2]


@pytest.mark.slow
def test_two_machines_train_one_run(tiny_shards: Path, tmp_path: Path) -> None:
    first, second = two_machines(training(tiny_shards, tmp_path / "run"))
    assert "2 processes on cpu" in first
    assert "training from" not in second
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1, 2]
