"""The gated depthwise kernel agrees with plain PyTorch in float64, in value and in both gradients."""

import pytest
import torch
from torch import Tensor

from upfield.model.amir import Amir, AmirConfig
from upfield.model.blocks import ROW_MULTIPLE, GatedFeedForward, next_multiple
from upfield.model.configuration import PRESETS
from upfield.model.kernels import depthwise, gated_depthwise


def preset_channels() -> list[int]:
    """Return the hidden channels of all presets, padded as the network pads them."""
    with torch.device("meta"):
        networks = [Amir(AmirConfig.preset(name)) for name in PRESETS]
    layers = [module for network in networks for module in network.modules() if isinstance(module, GatedFeedForward)]
    return sorted({next_multiple(layer.project_out.weight.shape[1], ROW_MULTIPLE) for layer in layers})


def run(function, halves: Tensor, filters: Tensor, slope: Tensor) -> list[Tensor]:
    """Return the value and the gradients of images and filters of any shape."""
    halves, filters = halves.detach().requires_grad_(), filters.detach().requires_grad_()
    out = function(halves, filters)
    return [out, *torch.autograd.grad(out, (halves, filters), slope.to(out.dtype))]


def check(shape: tuple[int, int, int], channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    halves = (2 * torch.randn(*shape, 2 * channels, generator=generator)).to(dtype)
    filters = torch.randn(2 * channels, 9, generator=generator) / 2
    slope = torch.randn(*shape, channels, generator=generator).to(dtype)
    found = run(gated_depthwise.gated_depthwise, halves, filters, slope)
    expected = run(gated_depthwise.plain_gated_depthwise, halves.double(), filters.double(), slope.double())
    assert [value.dtype for value in found] == [dtype, dtype, torch.float32]
    for value, reference in zip(found, expected, strict=True):
        tolerance = 5e-7 if value.dtype == dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert (value - reference).norm() <= tolerance * reference.norm()


@pytest.mark.parametrize("channels", preset_channels())
def test_all_channels_of_the_presets(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if channels > 64:  # The interpreter takes as long for a large block as for a small one.
        for module in (depthwise, gated_depthwise):
            monkeypatch.setattr(module, "BLOCK", 1024)
    check((1, 1, 2), channels, torch.float32)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 2, 17), torch.bfloat16), ((1, 9, 3), torch.float16)])
def test_images_that_end_within_a_tile(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(shape, 24, dtype)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_layer_computes_the_same_with_the_kernel(recompute: bool) -> None:
    layer = GatedFeedForward(8, 2.66)
    layer.recompute = recompute
    x = torch.randn(2, 3, 4, 8)
    results: list[list[Tensor]] = []
    for layer.fused in (False, True):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])])
    torch.testing.assert_close(*results)


def test_operators_keep_what_they_promise_to_the_compiler() -> None:
    halves, filters = torch.randn(1, 2, 3, 32)[..., 16:].bfloat16(), torch.randn(16, 9)
    out = gated_depthwise._forward(halves, filters)
    torch.library.opcheck(gated_depthwise._forward, (halves, filters), test_utils=("test_schema", "test_faketensor"))
    for operator, slope in ((gated_depthwise._convolved_gradient, out), (depthwise.depthwise_backward, halves)):
        arguments = (slope, halves, filters)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
