"""The processor's name, and the number of cores and threads that this process may use."""

import math
import os
import platform
import time
from pathlib import Path

import psutil

WINDOW_S, WINDOWS = 0.1, 5
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def num_cores() -> int:
    """Return the number of physical cores that this process may use."""
    return min(psutil.cpu_count(logical=False) or num_logical_cores(), num_logical_cores())


def num_logical_cores() -> int:
    """Return the number of logical cores that this process may use, within the quota of its container."""
    return max(1, math.ceil(min(len(_allowed_cores()), _quota())))


def most_threads(processes: int = 1) -> int:
    """Return the number of threads for each of `processes` equal processes if nothing else runs on this machine."""
    return max(1, num_logical_cores() // processes)


def num_threads(processes: int = 1) -> int:
    """Return the number of threads for each of `processes` equal processes on this machine.

    The variable OMP_NUM_THREADS decides, if it is set. Otherwise the processes share the cores that other processes
    leave free at this moment. The threads of a process wait for each other at every operator: if one of them must share
    its core, all of them together are slower than a single thread on a free core.
    """
    if chosen := chosen_threads():
        return chosen
    free = len(_allowed_cores()) - round(busy_cores())
    return max(1, min(free, num_logical_cores()) // processes)


def chosen_threads() -> int:
    """Return the number of threads that the user or a launcher chose by OMP_NUM_THREADS, or 0."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def leave_busy_cores() -> None:
    """Let torch compute with at most `num_threads()` threads in this process."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), num_threads()))


def busy_cores() -> float:
    """Return the number of cores that other processes use, of those that this process may use.

    The least of up to five measurements counts, so that a short burst of work is not taken for a busy machine. On a
    quiet machine, one measurement of a tenth of a second is enough.
    """
    least = math.inf
    for _ in range(WINDOWS):
        began, own = time.perf_counter(), time.process_time()
        percents = psutil.cpu_percent(WINDOW_S, percpu=True)
        own_cores = (time.process_time() - own) / (time.perf_counter() - began)
        used = sum(percents[core] for core in _allowed_cores() if core < len(percents)) / 100
        least = min(least, max(0.0, used - own_cores))
        if round(least) == 0:
            break
    return least


def _allowed_cores() -> list[int]:
    """Return the numbers of the logical cores that the scheduler may give to this process."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _quota() -> float:
    """Return the number of cores of which this container may use the time, or infinity without a limit."""
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def processor_name() -> str:
    """Return the processor's model name, which reports show beside measured times."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
