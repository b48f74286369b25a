"""Builds a set over and over, each time killed at another step towards the disk, and finishes it. Run by test_crash.

Usage: crash.py COHORTS.yaml WORK_FOLDER STRIDE. Every STRIDE-th call of fsync, replace and unlink is a moment at which
the system may end the process; after each kill the same command is given again, and the outcome compared.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import upfield.sharding.building.pairs  # noqa: F401 - loaded once, before the process is forked
from upfield.sharding.shard import main

STEPS = ("fsync", "replace", "unlink")


def contents(root: Path) -> dict[str, bytes]:
    """Give the bytes of each file of a set."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def kill_at(step: int) -> None:
    """Let this process die by SIGKILL before its call number `step` of a step towards the disk."""
    done = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return wrapped

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))


def build(arguments: list[str], step: int | None = None) -> int:
    """Build in a process of its own, killed at `step`; give its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        if step is not None:
            kill_at(step)
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Give inode and time of change of each shard that is in place."""
    tars = (path for path in out.glob("*/*.tar") if not path.name.startswith("."))
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in tars}


def run(cohorts: str, work: Path, stride: int) -> int:
    """Try every `stride`-th moment; give how many there were."""
    undisturbed = work / "undisturbed"
    assert build(["--config", cohorts, "--out", str(undisturbed), "--jobs", "1"]) == 0
    expected = contents(undisturbed)
    step, kills = 1, 0
    while True:
        out = work / "shards"
        arguments = ["--config", cohorts, "--out", str(out), "--jobs", "1"]
        status = build(arguments, step)
        if status == 0:
            return kills
        assert status == -signal.SIGKILL, status
        kills += 1
        before = finished(out)
        assert build(arguments) == 0, f"step {step}: not finished"
        assert contents(out) == expected, f"step {step}: other bytes"
        after = finished(out)
        assert all(after[name] == state for name, state in before.items()), f"step {step}: a shard was built again"
        shutil.rmtree(out)
        step += stride


if __name__ == "__main__":
    print(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
