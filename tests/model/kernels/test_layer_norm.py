"""The layer norm kernel equals its definition, in values and gradients, and so does a network that uses it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from upfield.model.amir import Amir, AmirConfig
from upfield.model.blocks import ROW_MULTIPLE, TransformerBlock, next_multiple
from upfield.model.configuration import PRESETS
from upfield.model.kernels import layer_norm as kernel
from upfield.model.kernels.layer_norm import plain_residual_norm, residual_norm

CHANNELS = sorted({AmirConfig.preset(name).dim << level for name in PRESETS for level in range(4)})


def example(channels: int) -> list[Tensor]:
    """Return an image and a branch `(2, 3, 5, channels)` of different means, and scale and shift `(channels,)`."""
    torch.manual_seed(0)
    x, branch = 3 * torch.randn(2, 2, 3, 5, channels) + torch.tensor([1.0, -8.0]).reshape(2, 1, 1, 1, 1)
    return [x, branch, torch.rand(channels) + 0.5, torch.randn(channels)]


def values_and_gradients(function: Callable, channels: int, width: int, adds: bool, dtype: torch.dtype) -> list[Tensor]:
    """Return both results of `function` and the gradients of its inputs, for fixed gradients of the results."""
    x, branch, scale, shift = (tensor.to(dtype, copy=True).requires_grad_() for tensor in example(channels))
    results = function(x, branch if adds else None, scale, shift, 1e-5, width)
    slopes = [torch.linspace(-9, 9, result.numel()).sin().reshape(result.shape).to(dtype) for result in results]
    inputs = [x, scale, shift] + [branch] * adds
    return [*results, *torch.autograd.grad(results, inputs, slopes)]


@pytest.mark.parametrize("channels", CHANNELS)
def test_values_and_gradients_are_those_of_the_definition_in_float64(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "MOST_PROGRAMS", 3)  # so that each program sums several tiles
    monkeypatch.setattr(kernel, "TILE", 1024)
    for adds, width in ((True, next_multiple(channels, ROW_MULTIPLE)), (False, channels)):
        found = values_and_gradients(residual_norm, channels, width, adds, torch.float32)
        expected = values_and_gradients(plain_residual_norm, channels, width, adds, torch.float64)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_errs_by_rounding_only(dtype: torch.dtype, tolerance: float) -> None:
    x, branch, scale, shift = example(42)
    found = residual_norm(x.to(dtype), branch.to(dtype), scale, shift, 1e-5)
    expected = plain_residual_norm(x.to(dtype).double(), branch.to(dtype).double(), scale, shift, 1e-5)
    assert found[1].dtype == dtype
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_a_network_with_the_kernel_has_the_same_values_and_gradients() -> None:
    network = Amir(AmirConfig(dim=6, num_blocks=(0, 1, 0, 1), num_refinement_blocks=0, heads=(1, 1, 1, 1))).eval()
    image, results = torch.rand(1, 1, 16, 16), []
    for fused in (False, True):
        one = copy.deepcopy(network)
        one.use_kernels("on" if fused else "off")
        one.set_checkpointing("full" if fused else "none")
        restored = one(image)
        restored.square().sum().backward()
        results.append([restored, *(parameter.grad for parameter in one.parameters() if parameter.grad is not None)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# torch.compile itself does what this warning is about.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_block_keeps_the_kernel_in_one_graph() -> None:
    block = TransformerBlock(6, 1, 2.0)
    block.norm1.fused = block.norm2.fused = True
    x = torch.randn(1, 4, 5, 6, requires_grad=True)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = []
    for function in (block, compiled):
        y = function(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_fake_tensors_can_trace_a_step() -> None:
    with FakeTensorMode():
        network = Amir(AmirConfig.preset("tiny")).train()
        network.use_kernels("on")
        restored, load_loss = network(torch.rand(1, 1, 16, 16))
        (restored.mean() + load_loss).backward()
