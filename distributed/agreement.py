"""Agreement between the processes of a job: if one fails, all fail, none waits forever, and one prints the error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from upfield.common.environment.job_errors import describe_process
from upfield.common.errors import (
    EXIT_INPUT,
    FetchError,
    InputError,
    MemoryShortageError,
    RunError,
    explain_error,
)
from upfield.common.locking import LOCK, FolderLock, lock_folder, try_lock
from upfield.common.stop_signals import StopReason, StopRequest

T = TypeVar("T")


def agree_to_stop(stop: StopRequest) -> bool:
    """Return whether any process was asked to stop, and record it as agreed. Collective: ALL ranks call it."""
    asked = [stop.asked] if PartialState().num_processes == 1 else gather_object([stop.asked])
    if any(asked):
        stop.agreed = StopReason.SIGNAL
    return any(asked)


@contextmanager
def errors_met_by_all(kind: type[InputError | RunError] = RunError) -> Iterator[None]:
    """Mark errors of `kind` as shared by all processes of the job, so that one of them prints the error.

    A `FetchError` and a `MemoryShortageError` are not shared, because each process has its own files and memory.
    """
    try:
        yield
    except kind as error:
        error.met_by_all = not isinstance(error, FetchError | MemoryShortageError)
        raise


def run_on_all_processes(work: Callable[[], T]) -> T:
    """Call `work` on every process. If it fails on one process, raise its error on all processes, and name the process.

    Collective: ALL ranks call it.

    Args:
        work: function that must not contain a collective call.

    Returns:
        The result of `work` on this process.

    Raises:
        InputError: `work` raised an InputError on some process.
        RunError: `work` raised a RunError on some process.
    """
    results: list[T] = []
    problem = _caught(lambda: results.append(work()))
    problems: list[tuple[bool, str] | None] = gather_object([problem])
    failed = [(rank, *each) for rank, each in enumerate(problems) if each is not None]
    if failed:
        rank, is_input, message = failed[0]
        _raise((is_input, message if len(failed) == len(problems) else f"{describe_process(rank)}: {message}"))
    return results[0]


def run_on_main_process(work: Callable[[], T]) -> T:
    """Call `work` on the main process and return its result on every process. Collective: ALL ranks call it.

    Args:
        work: function whose result can be pickled.

    Raises:
        InputError: `work` raised an InputError.
        RunError: `work` raised a RunError.
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
    """Call `work` and, if it raises, return whether the error is an InputError, and its message."""
    try:
        work()
    except (InputError, RunError, OSError) as error:
        message, code = explain_error(error)
        return code == EXIT_INPUT, message
    return None


def _raise(problem: tuple[bool, str]) -> NoReturn:
    error = (InputError if problem[0] else RunError)(problem[1])
    error.met_by_all = True
    raise error


def write_on_main_process(what: str, write: Callable[[], None]) -> None:
    """Call `write` on the main process. If it fails, raise a RunError on every process.

    Collective: ALL ranks call it.

    Args:
        what: name and location of the written data, for the error message.
        write: function that writes the data.

    Raises:
        RunError: the main process could not write the data.
    """

    def attempt() -> None:
        try:
            write()
        # A library may wrap the system's error in an error of its own, of any class.
        except Exception as error:
            problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise RunError(
                f"{what} could not be written ({problem}). Everything written before is intact: free disk space or fix "
                "the cause, then run the same command again."
            ) from error

    run_on_main_process(attempt)


def hold_folder(out: Path) -> FolderLock | None:
    """Lock a run's folder, so that no other job writes to it. Collective: ALL ranks call it.

    Args:
        out: folder of the run.

    Returns:
        The lock on the main process, None elsewhere. The caller closes the lock at the end of the run.

    Raises:
        InputError: another job holds the lock.
    """
    locks: list[FolderLock] = []

    def take() -> None:
        lock = lock_folder(out, "--run.out")
        if lock is None:
            raise InputError(
                f"{out}: another job is training this run. Wait until it ends, stop it, or choose another --run.out."
            )
        locks.append(lock)

    run_on_main_process(take)
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
    """Sum values `(N, ...)` over the processes, and sum their gradients in the backward pass.

    Collective, forward and backward: ALL ranks call it.
    """
    total = _SumOverProcesses.apply(values)
    assert isinstance(total, Tensor)
    return total


def is_held(out: Path) -> bool:
    """Return whether a job is training the run in `out`."""
    try:
        # Opening the file for reading and writing does not create it.
        with (out / LOCK).open("r+") as lock:
            return not try_lock(lock, out)
    except OSError:
        return False
