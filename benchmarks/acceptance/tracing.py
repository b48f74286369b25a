"""Count what the network does without computing it: bytes moved by operators, operations, depthwise convolutions."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from upfield.model.amir import Amir, AmirConfig, noise_shapes
from upfield.model.configuration import LossConfig
from upfield.model.losses import restoration_loss

WHOLE_SLICE = (221, 200)
aten = torch.ops.aten
# Operators that only make or rename a tensor.
FREE = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.detach.default}
FREE |= {aten._unsafe_view.default, aten.lift_fresh.default}


@dataclass
class Traffic(TorchDispatchMode):
    """Sums the bytes of the inputs and outputs of every operator, as if each read and wrote all of them once."""

    bytes_by_operator: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    depthwise: set[tuple[int, int, int]] = field(default_factory=set)
    """Channels, height and width of each depthwise convolution."""

    def __post_init__(self) -> None:
        """Set up the dispatch mode, which is not a dataclass."""
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and count it."""
        result = func(*args, **(kwargs or {}))
        if func.namespace != "aten" or func.is_view or func in FREE:
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.bytes_by_operator[str(func)] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.calls[str(func)] += 1
        if func == aten.convolution.default and args[8] == args[1].shape[0] > 1 and args[1].shape[1] == 1:
            self.depthwise.add((args[1].shape[0], *args[0].shape[2:]))
        return result

    @property
    def total_bytes(self) -> int:
        """Sum over all operators."""
        return self.bytes_by_operator.total()


def on_fake_device(network: nn.Module, device: str) -> nn.Module:
    """Replace the parameters and buffers of a network without data by fake ones on `device`. Call in a fake mode."""
    for module in network.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = nn.Parameter(torch.empty(tensor.shape, device=device))
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, device=device)
    return network


@contextmanager
def fake_network(config: AmirConfig, device: str) -> Iterator[Amir]:
    """Yield a network without data that counts as being on `device`; all tensors made inside have no data either."""
    with torch.device("meta"):
        network = Amir(config).train()
    with FakeTensorMode():
        on_fake_device(network, device)
        yield network


def trace_step(config: AmirConfig, size: tuple[int, int], device: str, dtype: torch.dtype) -> tuple[Traffic, int]:
    """Trace the forward pass, the loss and the backward pass of one slice.

    Args:
        config: sizes of the network.
        size: height and width of the slice.
        device: device whose code path is traced.
        dtype: dtype of autocast; float32 turns it off.

    Returns:
        The traffic, and three times the floating-point operations of the forward pass.
    """
    with fake_network(config, device) as network:
        low = torch.empty(1, config.in_channels, *size, device=device)
        high = torch.empty(1, 1, *size, device=device)
        noise = [torch.empty(1, *shape, device=device) for shape in noise_shapes(config, *size)]
        with Traffic() as traffic:
            with (
                FlopCounterMode(display=False) as counter,
                torch.autocast(device, dtype, enabled=dtype != torch.float32),
            ):
                restored, load_loss = network(low, noise)
            restoration_loss(restored, high, load_loss, LossConfig())[0].backward()
    # The counter would count the gradients of depthwise convolutions as if all channels were connected.
    return traffic, 3 * counter.get_total_flops()


def depthwise_sizes(preset: str, device: str) -> set[tuple[int, int, int]]:
    """Return channels, height and width of each depthwise convolution of a preset on a whole slice."""
    config = AmirConfig.preset(preset)
    # All blocks of a level have the same sizes.
    blocks = [min(count, 1) for count in config.num_blocks]
    config = replace(config, num_blocks=tuple(blocks), num_refinement_blocks=min(config.num_refinement_blocks, 1))
    with fake_network(config, device) as network, Traffic() as traffic:
        network(torch.empty(1, config.in_channels, *WHOLE_SLICE, device=device))
    return traffic.depthwise
