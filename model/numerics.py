"""How GPUs compute: float32 without TF32 and, on request, with the same result each time."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from upfield.common.errors import InputError

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# With these settings, cuBLAS gives each stream its own workspace and always chooses the same algorithm.
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")


def use_exact_float32() -> None:
    """Make GPUs compute products and convolutions of float32 tensors in float32.

    By default, PyTorch computes float32 convolutions in TF32, which has 10 bits after the point and changes SSIM in the
    third decimal.
    """
    with warnings.catch_warnings():
        # Newer versions of torch have other names for these settings, and some announce that. They refuse to mix the
        # names, and other libraries use the old ones.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def deterministic_algorithms(enabled: bool = True) -> Iterator[None]:
    """Make each operator on a GPU return the same bits each time, inside the `with` block.

    Args:
        enabled: if false, this function changes nothing.

    Raises:
        InputError: cuBLAS may already have started with another setting.
    """
    if not enabled:
        yield
        return
    _set_workspace()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    before = torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # This also stops torch.compile from choosing kernels by their speed.
    torch.use_deterministic_algorithms(True)
    # Filling new memory finds programs that read it too early, and costs a pass over each activation.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def _set_workspace() -> None:
    present = os.environ.get(CUBLAS_WORKSPACE)
    if present in DETERMINISTIC_WORKSPACES:
        return
    wanted = f"Set {CUBLAS_WORKSPACE}={DETERMINISTIC_WORKSPACES[0]} in the environment before the program starts."
    if present is not None:
        raise InputError(
            f"run.deterministic: expected {CUBLAS_WORKSPACE} to be {' or '.join(DETERMINISTIC_WORKSPACES)}, found "
            f"{present}. {wanted}"
        )
    # cuBLAS reads the variable once, when it starts.
    if torch.cuda.is_initialized():
        raise InputError(f"run.deterministic: this process has already used a GPU. {wanted}")
    os.environ[CUBLAS_WORKSPACE] = DETERMINISTIC_WORKSPACES[0]


class ReflectionByIndex(TorchFunctionMode):
    """Replaces padding by reflection, whose gradient on a GPU is not deterministic, by a selection of pixels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or pad by index."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.pad and kwargs.get("mode") == "reflect":
            return pad_by_index(args[0], *args[1:2] or (kwargs["pad"],))
        return func(*args, **kwargs)


def pad_by_index(image: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Pad `image` `(B, C, H, W)` by reflection.

    Args:
        image: image of at least `pad` + 1 pixels in each direction.
        pad: number of pixels to add at the left, right, top and bottom.
    """
    for dim, first, last in ((-1, *pad[:2]), (-2, *pad[2:])):
        size = image.shape[dim]
        place = torch.arange(-first, size + last, device=image.device).abs()
        image = image.index_select(dim, torch.where(place < size, place, 2 * (size - 1) - place))
    return image
