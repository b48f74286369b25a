"""Start training through the real entry script, and read what it wrote."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from accelerate.state import AcceleratorState

from upfield.cli.accelerate_launcher import launch_command
from upfield.distributed.launch import SCRIPT
from upfield.distributed.train import main

SMALL = ["--model.preset", "tiny", "--run.precision", "no", "--run.log_every", "1", "--optim.lr", "1e-3"]


def command(shards: Path, out: Path, *arguments: str, processes: int = 1) -> list[str]:
    start = launch_command(processes) if processes > 1 else [sys.executable]
    return [*start, str(SCRIPT), "--data.shards", str(shards), "--run.out", str(out), *SMALL, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def trained(shards: Path, out: Path, *arguments: str, processes: int = 1) -> Path:
    """Train to the end. A single process trains in this process, which saves the imports. A launcher starts several."""
    arguments = (*arguments, "--data.trace", str(out / "trace.jsonl"))
    if processes > 1:
        done = run(*command(shards, out, *arguments, processes=processes))
        assert done.returncode == 0, done.stderr
        return out
    code, said = called(*command(shards, out, *arguments)[2:])
    assert code == 0, said
    return out


def called(*arguments: str) -> tuple[int, str]:
    """Call the entry script's `main` and return its exit code and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([*arguments])
    AcceleratorState._reset_state(reset_partial_state=True)
    return code, said.getvalue()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def training_lines(out: Path) -> list[dict]:
    return [line for line in lines(out / "metrics.jsonl") if line["event"] == "train"]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in training_lines(out)]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def started(shards: Path, out: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a run that trains until it is stopped, and wait for its first checkpoint."""
    long = ("--run.max_steps", "100000", "--run.epochs", "100000", "--run.checkpoint_every", "2", *arguments)
    process = subprocess.Popen(
        command(shards, out, *long), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(out / "checkpoints" / "step-00000002")
    return process


def assert_saved_where_it_stopped(out: Path) -> None:
    last = max(line["step"] for line in lines(out / "metrics.jsonl"))
    assert (out / "checkpoints" / "last").resolve().name == f"step-{last:08d}"


def rank_one(launcher: int) -> str:
    """Return the process ID of the second rank that a launcher started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError("no second rank")


def signalled_in_rank_one(arguments: list[str], out: Path, name: str) -> tuple[int | None, str]:
    """Signal the second rank of a job that saves a checkpoint at step 2. Return the job's exit code and stderr."""
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for(out / "checkpoints" / "step-00000002")
        subprocess.run(["kill", f"-{name}", rank_one(process.pid)], check=True)
        _, stderr = process.communicate(timeout=90)
    return process.returncode, stderr
