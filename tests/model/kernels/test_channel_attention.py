"""The kernels of channel attention agree with their definition in float64, in value and in all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from upfield.model.blocks import ChannelAttention
from upfield.model.kernels import depthwise
from upfield.model.kernels.channel_attention import channel_attention, plain_channel_attention

PRESETS = [(42, 1), (84, 2), (168, 4), (336, 8), (84, 1), (8, 1), (16, 2), (32, 4), (64, 8), (16, 1)]  # channels, heads


def evaluate(function: Callable[..., tuple[Tensor, ...]], qkv: Tensor, filters: Tensor, heads: int) -> list[Tensor]:
    """Return squares, products and values, and the gradients of a fixed mixture of them."""
    qkv, filters = qkv.clone().requires_grad_(), filters.clone().requires_grad_()
    results = function(qkv, filters, heads)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(result.shape, generator=generator).to(result) for result in results]
    gradients = torch.autograd.grad(results, (qkv, filters), weights)
    return [*(result.detach() for result in results), *gradients]


def check(shape: tuple[int, int, int], channels: int, heads: int, dtype: torch.dtype, padding: int = 0) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(*shape, 3 * (channels + padding), generator=generator).to(dtype)
    filters = torch.randn(3 * channels, 9, generator=generator)
    found = evaluate(channel_attention, qkv, filters, heads)
    expected = evaluate(plain_channel_attention, qkv.double(), filters.double(), heads)
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for value, reference in zip(found, expected, strict=True):
        assert value.shape == reference.shape
        torch.testing.assert_close(value.double(), reference, rtol=0, atol=tolerance * float(reference.abs().max()))


@pytest.mark.parametrize(("channels", "heads"), PRESETS)
def test_sums_and_gradients_agree_for_the_sizes_of_all_presets(
    channels: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "BLOCK", 1024)  # The interpreter takes as long for a large block as for a small one.
    check((1, 1, 2), channels, heads, torch.float32, padding=-channels % 8)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 9, 17), torch.float32),
        ((1, 1, 1), torch.float32),
        ((1, 4, 5), torch.bfloat16),
        ((1, 4, 5), torch.float16),
    ],
)
def test_images_of_any_size_agree_in_every_precision(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(shape, 6, 2, dtype, padding=2)


@pytest.mark.parametrize(("dtype", "norm"), [(torch.bfloat16, 1.0), (torch.float16, 1e-3)])
def test_attention_with_the_kernel_agrees_with_plain_attention(dtype: torch.dtype, norm: float) -> None:
    torch.manual_seed(0)
    attention = ChannelAttention(12, 2)
    attention.gpu_path = True
    with torch.no_grad():
        attention.qkv.weight[:2] = 0  # Channels that are zero everywhere have a gradient too.
        attention.qkv.weight *= norm
    x, slope = torch.randn(2, 2, 17, 12), torch.randn(2, 2, 17, 12)
    results = []
    for attention.fused in (True, False):
        attention.zero_grad()
        with torch.autocast("cpu", dtype):
            out = attention(x)
        out.backward(slope.to(out.dtype))
        gradients = [p.grad for p in attention.parameters() if p.grad is not None]
        assert len(gradients) == 4
        results.append([out.detach(), *gradients])
    for found, expected in zip(*results, strict=True):
        assert found.isfinite().all()
        assert (found - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()
