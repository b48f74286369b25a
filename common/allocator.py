"""Set how much freed memory glibc's allocator keeps.

By default, glibc returns every block above 32 MiB to the system when it is freed, and the system must clear each page
before the next layer can use it. At full resolution, this took up to half of the CPU time (benchmarks/model.py).
"""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # from glibc's malloc.h


def keep_freed_memory(keep: bool = True) -> None:
    """Keep freed memory in this process for later allocations instead of returning it to the system.

    This function does nothing if the C library is not glibc.

    Args:
        keep: if false, set the limits to the highest values that glibc chooses by itself, and return the kept memory to
            the system.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if keep:
        # Before glibc 2.35, the threshold has an upper limit. Forbidding mmap has the same effect.
        if not libc.mallopt(M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    else:
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        libc.malloc_trim(0)
