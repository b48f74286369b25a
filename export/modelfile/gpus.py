"""The GPUs of this machine, according to NVIDIA's driver."""

import ctypes
import os


def num_gpus() -> int:
    """Return the number of GPUs that this process may use. It is 0 if the driver is missing or refuses.

    The driver is asked because its file in `/proc` is missing on WSL2, and remains on a machine without its GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def own_gpu() -> int:
    """Return the index of this process's own GPU among those that it may use.

    A launcher of several processes sets LOCAL_RANK. Some launchers also hide the GPUs of the other processes, so that
    there are fewer than ranks. Ray shows a replica only its own GPU, which then has index 0.
    """
    return int(os.environ.get("LOCAL_RANK", "0")) % max(num_gpus(), 1)
