"""The GPUs of this machine, and the one that this process uses."""

import ctypes
import os
from typing import TYPE_CHECKING

from upfield.common.errors import InputError

if TYPE_CHECKING:
    import torch


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


def torch_device(device: str) -> "torch.device":
    """Return this process's own GPU if there is one and `device` is not `cpu`, otherwise the CPU.

    Args:
        device: `auto`, `cuda` or `cpu`.

    Raises:
        InputError: the device that the user named is missing, or PyTorch cannot use it.
    """
    import torch  # takes seconds, and ONNX Runtime does not need it

    if device == "tensorrt":
        raise InputError("device: tensorrt belongs to ONNX Runtime. Use --device cuda, or --engine onnx.")
    has_gpu = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("device: cuda needs an NVIDIA GPU, but PyTorch finds none. Use auto or cpu.")
    return torch.device("cuda", own_gpu()) if has_gpu else torch.device("cpu")
