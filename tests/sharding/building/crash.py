"""Build a set many times, kill each build at another write to the disk, and finish it. Run by test_crash.

Usage: crash.py COHORTS.yaml WORK_FOLDER STRIDE. The build is killed before every STRIDE-th call of fsync, replace and
unlink in turn. After each kill, the same command runs again, and its result is compared with an undisturbed build.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import upfield.sharding.building.pairs.subject_pairs  # noqa: F401 - loaded once, before the process is forked
from upfield.sharding.shard import main

STEPS = ("fsync", "replace", "unlink")


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of each file of a set."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def kill_at(step: int) -> None:
    """Make this process die by SIGKILL before call number `step` of the functions in `STEPS`."""
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
    """Build in a separate process that is killed at `step`; return its exit status, negative for a signal."""
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
    """Return inode and modification time of each shard that is in place."""
    tars = (path for path in out.glob("*/*.tar") if not path.name.startswith("."))
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in tars}


def run(cohorts: str, work: Path, stride: int) -> int:
    """Kill a build at every `stride`-th step; return the number of kills."""
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
