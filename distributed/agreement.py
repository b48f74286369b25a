"""What the processes of a job must agree on when something goes wrong, lest some wait for ever or all say the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from upfield.sharding.errors import FetchError, InputError, RunError
from upfield.sharding.locking import try_lock

LOCK = ".lock"


@contextmanager
def errors_met_by_all(kind: type[InputError | RunError] = RunError) -> Iterator[None]:
    """Mark errors that every process of the job meets alike; by default those of a run, which it fails together."""
    try:
        yield
    except kind as error:
        error.met_by_all = not isinstance(error, FetchError)
        raise


def write_on_main_process(what: str, write: Callable[[], None]) -> None:
    """Let the main process write, and fail on all where it failed. Collective: ALL ranks call it.

    Args:
        what: what is written and where, for the message.
        write: called on the main process.

    Raises:
        RunError: the main process could not write.
    """
    problem = ""
    if PartialState().is_main_process:
        try:
            write()
        # A library in between may turn the system's error into one of its own.
        except (OSError, RuntimeError) as error:
            problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
    problems = [problem]
    broadcast_object_list(problems)
    if problems[0]:
        raise RunError(
            f"{what}: expected to write it, found: {problems[0]}; what was written before is whole. Make room, or mend "
            "what is wrong there, and start the same command again"
        )


def hold_folder(out: Path) -> TextIO | None:
    """Let this job alone write a run. Collective: ALL ranks call it.

    Args:
        out: folder of the run.

    Returns:
        On the main process, the lock: to be closed at the run's end, unless the process ends before.

    Raises:
        InputError: another job writes there.
    """
    lock, free = None, [True]
    if PartialState().is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
        free = [try_lock(lock, out)]
    broadcast_object_list(free)
    if not free[0]:
        raise InputError(
            f"{out}: expected no other training to write this run, found one that is going on; wait for it, end it, or "
            "choose another --run.out"
        )
    return lock


def lost_another(error: RuntimeError) -> bool:
    """Tell whether an error means that another process of the job has gone, or did not come in time."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
