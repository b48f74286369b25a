"""Run independent tasks on the cores of this machine or on a Ray cluster."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from upfield.common.errors import RunError
from upfield.common.progress import open_streams
from upfield.common.ray_cluster import connect_ray, explain_ray_errors

PR_SET_PDEATHSIG = 1  # linux/prctl.h

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(function: Callable[[T], R], tasks: Sequence[T], jobs: int = 0, executor: str = "local") -> Iterator[R]:
    """Apply `function` to each task and yield the results in the order in which they finish.

    Args:
        function: function at module level, because the function and the tasks are pickled.
        tasks: argument of each call.
        jobs: number of processes; 0 starts one per available core. With 1, the tasks run in this process.
        executor: `local`, or `ray` for tasks on the cluster that `connect_ray` finds.

    Raises:
        RunError: a worker process was killed, or Ray lost a task.
        Exception: any error that a task raised.
    """
    workers = min(jobs or len(os.sched_getaffinity(0)), max(len(tasks), 1))
    if executor == "ray":
        yield from _on_ray(function, tasks)
    elif workers == 1:
        yield from (_single_threaded(function, task) for task in tasks)
    else:
        yield from _in_processes(function, tasks, workers)


def _in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R]:
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker) as pool:
        futures = [pool.submit(_single_threaded, function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                f"One of {workers} worker processes was killed, most often because memory ran out. Start fewer with "
                "--jobs. The work done so far is kept."
            ) from error
        except BaseException:
            # After the first failure no further task starts. Wait for the running tasks, because no worker may write
            # after the caller has released its folder.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin_worker() -> None:
    end_with_parent()
    open_streams()


def end_with_parent() -> None:
    """Make Linux kill this process when its parent dies, because a killed parent cannot stop its children itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _single_threaded(function: Callable[[T], R], task: T) -> R:
    """Apply `function` with one BLAS thread.

    If every worker had a thread per core, the workers would slow each other down. The result would also depend on the
    number of workers, because a sum that is split over threads is rounded differently.
    """
    import numpy  # noqa: F401 - threadpool_limits finds only a BLAS that is loaded
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return function(task)


def _on_ray(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        connect_ray()
    waiting: list[Any] = []
    try:
        remote: Any = ray.remote(_single_threaded)
        waiting = [remote.remote(function, task) for task in tasks]
        while waiting:
            done, waiting = ray.wait(waiting)
            with explain_ray_errors("a task"):
                result = ray.get(done[0])
            yield result
    finally:
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting))
        if started_here:
            ray.shutdown()


def results_in_order(futures: Iterable[Future[R]], num_ahead: int) -> Iterator[R]:
    """Yield the results of futures in order. Up to `num_ahead` further futures are taken before each result is used."""
    ahead: deque[Future[R]] = deque()
    for future in futures:
        ahead.append(future)
        if len(ahead) > num_ahead:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
