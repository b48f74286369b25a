"""Three things at once: the next scan is read, this one restored, the last one written."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from upfield.common.errors import InputError

J = TypeVar("J")
P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Stages(Generic[J, P, R]):
    """What is done with each job; every stage has a thread of its own, and does one job after the other."""

    read: Callable[[J], P | None]
    """Gives what is to be restored, None where there is nothing to do."""
    restore: Callable[[J, P], R]
    """Gives what is to be written."""
    write: Callable[[J, P, R], None]
    """Writes it."""
    stop: Callable[[], None]
    """Makes `restore` end early, with any error."""


def run_pipeline(jobs: Sequence[J], stages: Stages[J, P, R], report: Callable[[J, InputError | None], None]) -> None:
    """Pass jobs through the stages in order.

    Decompression, array operations, networks and disks need no Python, so that threads suffice. At most one job is read
    ahead and one is being written: memory does not grow with their number.

    Args:
        jobs: what is to be done.
        stages: how.
        report: called in this thread for every job, in order but for those that fail early, with what is wrong with it.

    Raises:
        KeyboardInterrupt: after what was being written is written. So is any error but InputError, which ends the work.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as restorer, ThreadPoolExecutor(1) as writer:
        try:
            _pass(jobs, stages, report, reader, restorer, writer)
        except BaseException:
            stages.stop()
            for threads in (reader, restorer):
                threads.shutdown(wait=False, cancel_futures=True)
            raise


def _pass(
    jobs: Sequence[J],
    stages: Stages[J, P, R],
    report: Callable[[J, InputError | None], None],
    reader: ThreadPoolExecutor,
    restorer: ThreadPoolExecutor,
    writer: ThreadPoolExecutor,
) -> None:
    written: tuple[J, Future[None]] | None = None
    ahead = reader.submit(stages.read, jobs[0]) if jobs else None
    for job, following in zip_longest(jobs, jobs[1:]):
        assert ahead is not None
        prepared, error = _outcome(ahead)
        ahead = reader.submit(stages.read, following) if following is not None else None
        if prepared is not None:
            restoring = restorer.submit(stages.restore, job, prepared)
            if written is not None:
                report(written[0], _outcome(written[1])[1])
                written = None
            restored, error = _outcome(restoring)
            if error is None:
                written = job, writer.submit(stages.write, job, prepared, restored)
                # Otherwise they would stay until the next job is as far.
                del prepared, restoring, restored
                continue
        report(job, error)
    if written is not None:
        report(written[0], _outcome(written[1])[1])


def _outcome(future: Future[Any]) -> tuple[Any, InputError | None]:
    try:
        return future.result(), None
    except InputError as error:
        return None, error
