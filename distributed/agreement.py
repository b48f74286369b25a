"""What the processes of a job must agree on when something goes wrong, lest some wait for ever or all say the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from upfield.common.errors import FetchError, InputError, RunError
from upfield.common.locking import LOCK, lock_folder, try_lock

T = TypeVar("T")


@contextmanager
def errors_met_by_all(kind: type[InputError | RunError] = RunError) -> Iterator[None]:
    """Mark errors that every process of the job meets alike; by default those of a run, which it fails together."""
    try:
        yield
    except kind as error:
        error.met_by_all = not isinstance(error, FetchError)
        raise


def done_by_all(work: Callable[[], T]) -> T:
    """Do the same on every process, and fail on all where it failed on one. Collective: ALL ranks call it.

    Args:
        work: without anything collective in it.

    Returns:
        What it gave here.

    Raises:
        InputError: it raised that on some process.
        RunError: likewise.
    """
    results: list[T] = []
    problem = _caught(lambda: results.append(work()))
    problems = [found for found in gather_object([problem]) if found is not None]
    if problems:
        _raise(problems[0])
    return results[0]


def done_by_main_process(work: Callable[[], T]) -> T:
    """Let the main process do something, and give all what it gave. Collective: ALL ranks call it.

    Args:
        work: gives what can be sent to other processes.

    Raises:
        InputError: it raised that.
        RunError: likewise.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:

        def keep() -> None:
            outcome[0] = work()

        outcome[1] = _caught(keep)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        _raise(outcome[1])
    return outcome[0]


def _caught(work: Callable[[], object]) -> tuple[bool, str] | None:
    """Do it and give what was raised: whether the input is to blame, and the message."""
    try:
        work()
    except (InputError, RunError) as error:
        return isinstance(error, InputError), str(error)
    return None


def _raise(problem: tuple[bool, str]) -> NoReturn:
    error = (InputError if problem[0] else RunError)(problem[1])
    error.met_by_all = True
    raise error


def write_on_main_process(what: str, write: Callable[[], None]) -> None:
    """Let the main process write, and fail on all where it failed. Collective: ALL ranks call it.

    Args:
        what: what is written and where, for the message.
        write: called on the main process.

    Raises:
        RunError: the main process could not write.
    """

    def attempt() -> None:
        try:
            write()
        # A library in between may turn the system's error into one of its own, of any class.
        except Exception as error:
            problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise RunError(
                f"{what}: expected to write it, found: {problem}; what was written before is whole. Make room, or mend "
                "what is wrong there, and start the same command again"
            ) from error

    done_by_main_process(attempt)


def hold_folder(out: Path) -> TextIO | None:
    """Let this job alone write a run. Collective: ALL ranks call it.

    Args:
        out: folder of the run.

    Returns:
        On the main process, the lock: to be closed at the run's end, unless the process ends before.

    Raises:
        InputError: another job writes there.
    """
    locks: list[TextIO] = []

    def take() -> None:
        lock = lock_folder(out, "--run.out")
        if lock is None:
            raise InputError(
                f"{out}: expected no other training to write this run, found one that is going on; wait for it, end "
                "it, or choose another --run.out"
            )
        locks.append(lock)

    done_by_main_process(take)
    return locks[0] if locks else None


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, *gradients)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum values `(N, ...)` over the processes; their gradient is summed too. Collective, as is the backward pass."""
    total = _SumOverProcesses.apply(values)
    assert isinstance(total, Tensor)
    return total


def lost_another(error: RuntimeError) -> bool:
    """Tell whether an error means that another process of the job has gone, or did not come in time."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def is_held(out: Path) -> bool:
    """Tell whether a job is writing the run in `out`."""
    try:
        with (out / LOCK).open("a") as lock:
            return not try_lock(lock, out)
    except OSError:
        return False
