"""A pipeline of three threads: while one scan is restored, the next is read and the previous one is written."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, TypeVar

from upfield.common.errors import OutputError

J = TypeVar("J")
P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Stages(Generic[J, P, R]):
    """The three stages of a job; each stage has its own thread, and handles one job after another."""

    read: Callable[[J], P | None]
    """Returns the input of `restore`, or None to skip the job."""
    restore: Callable[[J, P], R]
    """Returns the input of `write`."""
    write: Callable[[J, P, R], None]
    """Writes the result."""
    stop: Callable[[], None]
    """Makes a running `restore` end early, with any error."""


def run_pipeline(jobs: Sequence[J], stages: Stages[J, P, R], report: Callable[[J, Exception | None], None]) -> None:
    """Pass all jobs through the stages in order.

    Threads suffice because decompression, array operations, ONNX Runtime and disk access release Python's global lock.
    At most one job is read ahead and one is being written, so memory use does not grow with the number of jobs.

    Args:
        jobs: one for each scan.
        stages: the functions that each job passes through.
        report: called in the calling thread once for every job, with its error or None. A job that fails early may be
            reported before the previous job, which is still being written.

    Raises:
        OutputError: no further result can be written.
        KeyboardInterrupt: the user pressed Ctrl-C. Both errors are raised after the current file has been written.
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
    report: Callable[[J, Exception | None], None],
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
                # Without this, the variables would keep the volumes in memory until the next job is restored.
                del prepared, restoring, restored
                continue
        report(job, error)
    if written is not None:
        report(written[0], _outcome(written[1])[1])


def _outcome(future: Future[Any]) -> tuple[Any, Exception | None]:
    try:
        return future.result(), None
    except OutputError:
        raise
    except Exception as error:
        return None, error
