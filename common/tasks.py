"""Run independent tasks on this machine's cores or on a Ray cluster, and give results as they finish."""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar, cast

from upfield.common.errors import InputError, RunError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ANSWER_S = 10
# Below this many files to be looked into, starting processes takes longer than looking.
FILES_FOR_PROCESSES = 5000

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(function: Callable[[T], R], tasks: Sequence[T], jobs: int = 0, executor: str = "local") -> Iterator[R]:
    """Apply `function` to each task and give results in the order they finish.

    Args:
        function: a module-level function; it and the tasks are pickled.
        tasks: its arguments.
        jobs: processes; 0 is one per available core. One process runs in this one.
        executor: `local`, or `ray` for tasks on the cluster that `connect_ray` finds.
    """
    workers = min(jobs or len(os.sched_getaffinity(0)), max(len(tasks), 1))
    if executor == "ray":
        yield from _on_ray(function, tasks)
    elif workers == 1:
        yield from (_single_threaded(function, task) for task in tasks)
    else:
        yield from _in_processes(function, tasks, workers)


def _in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R]:
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        futures = [pool.submit(_single_threaded, function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RunError(
                f"expected {workers} worker processes to stay alive, found one killed, most often for want of memory; "
                "use fewer with --jobs, the work done so far is kept"
            ) from error
        except BaseException:
            # The first failure ends it all: what has not started never does, and what has is waited for, so that no
            # worker still writes after the caller has let go of the folder.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def end_with_parent() -> None:
    """Let Linux kill this process when its parent dies: a parent killed hard leaves those it started going on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _single_threaded(function: Callable[[T], R], task: T) -> R:
    """Apply `function` with one BLAS thread.

    Workers with a thread per core each would get in one another's way, and sums split over threads round differently:
    the result would depend on the number of workers.
    """
    import numpy  # noqa: F401 - only a BLAS that is loaded can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return function(task)


def connect_ray(address: str | None = None, runtime_env: dict[str, Any] | None = None) -> None:
    """Connect to a cluster: that given, that of RAY_ADDRESS, the one running here; else start Ray on this machine.

    Ray itself tries for many minutes to reach a cluster that is gone, also one of which only the address is left in
    its folder; here a place where nothing listens is told from a cluster within seconds.

    Args:
        address: of a cluster, `auto` for one running here, `local` for none.
        runtime_env: what its processes need, as Ray takes it.

    Raises:
        InputError: there is no cluster at that address, or none at the address that RAY_ADDRESS gives.
        RunError: Ray cannot start on this machine.
    """
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    named = address or os.environ.get("RAY_ADDRESS", "")
    try:
        found = canonicalize_bootstrap_address(named.removeprefix("ray://") or cast(Any, None))
        if named == "auto" and not found:
            raise ConnectionError("none runs here")
        if found and not answers(found):
            if named:
                raise ConnectionError("nothing answers there")
            found = None
        ray.init(
            named or found or "local",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            runtime_env=runtime_env,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        if named in ("", "local"):
            raise RunError(f"expected Ray to start on this machine, found {type(error).__name__}: {error}") from error
        what = "address" if address else "RAY_ADDRESS"
        raise InputError(
            f"{what}: expected the address of a Ray cluster, found {named}: {error}; start the cluster, mend the "
            f"address, or {'leave it out' if address else 'unset it'} to use this machine"
        ) from error


def answers(address: str) -> bool:
    """Tell whether something listens at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError):
        return False
    return True


def _on_ray(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    started_here = not ray.is_initialized()
    if started_here:
        connect_ray()
    waiting: list[Any] = []
    try:
        remote: Any = ray.remote(_single_threaded)
        waiting = [remote.remote(function, task) for task in tasks]
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                yield ray.get(done[0])
            except RayTaskError as error:
                raise (error.cause or error) from error
            except RayError as error:
                raise RunError(f"expected Ray to finish the task, found {type(error).__name__}: {error}") from error
    finally:
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting))
        if started_here:
            ray.shutdown()
