"""Start training through the real entry script, and read what it left."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from upfield.distributed.launch import SCRIPT, launcher

SMALL = ["--model.preset", "tiny", "--run.precision", "no", "--run.log_every", "1", "--optim.lr", "1e-3"]


def command(shards: Path, out: Path, *arguments: str, processes: int = 1) -> list[str]:
    start = launcher(processes) if processes > 1 else [sys.executable]
    return [*start, str(SCRIPT), "--data.shards", str(shards), "--run.out", str(out), *SMALL, *arguments]


def environment() -> dict[str, str]:
    # Warnings are errors here, not in programs that the tests start.
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def trained(shards: Path, out: Path, *arguments: str, processes: int = 1) -> Path:
    done = run(*command(shards, out, *arguments, "--data.trace", str(out / "trace.jsonl"), processes=processes))
    assert done.returncode == 0, done.stderr
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def training_lines(out: Path) -> list[dict]:
    return [line for line in lines(out / "metrics.jsonl") if line["event"] == "train"]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in training_lines(out)]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def started(shards: Path, out: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a run that would take for ever, and wait for its first checkpoint."""
    long = ("--run.max_steps", "100000", "--run.epochs", "100000", "--run.checkpoint_every", "2", *arguments)
    process = subprocess.Popen(
        command(shards, out, *long), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(out / "checkpoints" / "step-00000002")
    return process


def assert_saved_where_it_stopped(out: Path) -> None:
    last = max(line["step"] for line in lines(out / "metrics.jsonl"))
    assert (out / "checkpoints" / "last").resolve().name == f"step-{last:08d}"
