"""The kernels of channel attention agree with their definition in float64, in value and in all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from upfield.model.kernels.channel_attention import channel_attention, plain_channel_attention

PRESETS = [(42, 1), (84, 2), (336, 8), (84, 1), (8, 1), (16, 2), (16, 1)]
SIMILAR = [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((168, 4), (32, 4), (64, 8))]


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


@pytest.mark.parametrize(("channels", "heads"), [*PRESETS, *SIMILAR])
def test_sums_and_gradients_agree_for_the_sizes_of_all_presets(channels: int, heads: int) -> None:
    check((1, 2, 3), channels, heads, torch.float32, padding=-channels % 8)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 11, 17), torch.float32),
        ((1, 1, 1), torch.float32),
        ((1, 4, 5), torch.bfloat16),
        ((1, 4, 5), torch.float16),
    ],
)
def test_images_of_any_size_agree_in_every_precision(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(shape, 6, 2, dtype, padding=2)
