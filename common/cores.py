"""The processor cores that computing may be spread over."""

import os


def num_cores() -> int:
    """Give the cores that this process may use, without the second threads of each."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
