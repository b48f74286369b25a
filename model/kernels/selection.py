"""Which kernels a network uses: all, none, or those that were shown to be right and faster on the card."""

import importlib.util
import os
from collections.abc import Mapping
from typing import get_args

import torch

from upfield.model.configuration import Kernels

# Per kernel, the compute capabilities of the cards on which `make gpu` has shown it to be right and faster. The table
# of that run is in benchmarks/tables/. A kernel without a proof is used only if a user asks for it.
PROVED: dict[str, frozenset[tuple[int, int]]] = {
    "gated_depthwise": frozenset(),
    "layer_norm": frozenset(),
    "channel_attention": frozenset(),
}


def has_triton() -> bool:
    """Return whether triton is installed. Builds of torch for CPUs lack it."""
    return importlib.util.find_spec("triton") is not None


def choose_kernels(
    kernels: Kernels, device: torch.device, proved: Mapping[str, frozenset[tuple[int, int]]] = PROVED
) -> frozenset[str]:
    """Return the names of the kernels to use on a device.

    Args:
        kernels: `off` uses none, `on` uses all, and `auto` uses those that are proved on this kind of card.
        device: device of the network.
        proved: names of all kernels, each with the compute capabilities on which it is proved.

    Raises:
        ValueError: `kernels` is none of these names, or it is `on` and kernels cannot run here.
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels: expected one of {get_args(Kernels)}, found {kernels!r}.")
    if kernels == "off":
        return frozenset()
    if kernels == "auto":
        if device.type != "cuda" or not has_triton():
            return frozenset()
        card = torch.cuda.get_device_capability(device)
        return frozenset(name for name, cards in proved.items() if card in cards)
    if not has_triton():
        raise ValueError("kernels: on needs triton, which is not installed. Install triton, or choose auto or off.")
    # Triton's interpreter runs kernels on a CPU. It is thousands of times slower than a GPU and serves tests only.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("kernels: on needs a CUDA GPU, and there is none here. Choose auto or off.")
    return frozenset(proved)
