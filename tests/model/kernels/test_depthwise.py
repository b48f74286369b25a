"""The depthwise kernel agrees with plain PyTorch in float64, in value and in both gradients."""

import pytest
import torch
from torch import Tensor

from upfield.model.kernels.depthwise import depthwise, plain_depthwise, tiling


def run(function, image: Tensor, filters: Tensor, slope: Tensor) -> list[Tensor]:
    """Return the value and the gradients of images and filters of any shape."""
    image, filters = image.detach().requires_grad_(), filters.detach().requires_grad_()
    out = function(image, filters)
    return [out, *torch.autograd.grad(out, (image, filters), slope.to(out.dtype))]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 1, 17, 8), torch.bfloat16), ((1, 9, 2, 16), torch.float16), ((1, 1, 1, 42), torch.float32)],
)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    image, slope = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    filters = torch.randn(shape[-1], 9, generator=generator)
    found = run(depthwise, image, filters, slope)
    expected = run(plain_depthwise, image.double(), filters.double(), slope.double())
    assert [value.dtype for value in found] == [dtype, dtype, torch.float32]
    for value, reference in zip(found, expected, strict=True):
        tolerance = 5e-7 if value.dtype == torch.float32 else torch.finfo(dtype).eps
        assert (value - reference).norm() <= tolerance * reference.norm()


def test_some_channels_of_a_larger_image_need_no_copy() -> None:
    wide, filters = torch.randn(1, 2, 3, 16), torch.randn(8, 9)
    part = wide[..., 8:]
    torch.testing.assert_close(depthwise(part, filters), plain_depthwise(part, filters))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 25), (224, 200), (224, 17)])
def test_tiles_cover_the_image_once(height: int, width: int) -> None:
    for num_images in (1, 100, 10000):
        tiles, rows = tiling(height, width, num_images, 4224)
        across = -(-width // 16)
        assert tiles == across * -(-height // rows)
        assert rows >= min(height, 8)
