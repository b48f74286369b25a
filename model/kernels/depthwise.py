"""Depthwise 3x3 convolutions of images in `(B, H, W, C)` memory, forward and backward, with zero padding.

A program convolves a strip of columns, row by row. It reads each row once, shifted by -1, 0 and 1 columns, and keeps
the unfinished sums of the next two rows in registers. So each value is read 3 times from the cache, not 9 times. A
thread holds 4 values of each tensor, so that the nine taps of its channels fit into registers beside them.

Let U be the bytes of an image. The forward pass moves 2 U. The backward pass reads the image and the gradient once and
writes the gradient of the image: 3 U, where separate kernels for the two gradients move 4 U. It also adds up the
gradient of the filters, one float32 sum per tile, and PyTorch adds the sums of all tiles in a fixed order.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

STRIP = 16  # columns of a tile
BLOCK = 32  # channels of a tile
SIZES = ["H", "W", "rows"]  # Kernels are compiled once for all of these, because compiling takes seconds.
NUM_PROGRAMS = 4224  # 32 for each of the 132 multiprocessors of an H100, of which four run at a time


def plain_depthwise(image: Tensor, filters: Tensor) -> Tensor:
    """Convolve each channel of `image` `(B, H, W, C)` with its row of `filters` `(C, 9)`. This defines `depthwise`."""
    kernels = filters.to(image.dtype).unflatten(1, (1, 3, 3))
    return F.conv2d(image.permute(0, 3, 1, 2), kernels, padding=1, groups=len(kernels)).permute(0, 2, 3, 1)


def depthwise(image: Tensor, filters: Tensor) -> Tensor:
    """Convolve each channel of an image with its own 3x3 filter, with zeros around the image.

    Args:
        image: `(B, H, W, C)`.
        filters: `(C, 9)`, in any precision.

    Returns:
        `(B, H, W, C)` in the precision of the image. It can be differentiated once.
    """
    return _Depthwise.apply(image, filters)  # pyright: ignore[reportReturnType]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(image, filters)
        return _forward(image, filters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return depthwise_backward(gradient, *ctx.saved_tensors)


@torch.library.custom_op("upfield::depthwise", mutates_args=())
def _forward(image: Tensor, filters: Tensor) -> Tensor:
    """Convolve an image `(B, H, W, C)` with `filters` `(C, 9)`."""
    return convolve(evenly_spaced(image), filters)


@_forward.register_fake
def _(image: Tensor, filters: Tensor) -> Tensor:
    return torch.empty_like(image, memory_format=torch.contiguous_format)


@torch.library.custom_op("upfield::depthwise_backward", mutates_args=())
def depthwise_backward(gradient: Tensor, image: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `image` `(B, H, W, C)` and `filters` `(C, 9)`, each in its precision.

    Args:
        gradient: `(B, H, W, C)`, gradient of the convolved image.
        image: `(B, H, W, C)`.
        filters: `(C, 9)`.
    """
    image_gradient = torch.empty_like(image, memory_format=torch.contiguous_format)
    sums = convolve_backward(evenly_spaced(gradient), evenly_spaced(image), filters, image_gradient)
    return image_gradient, sums.to(filters.dtype).contiguous()


@depthwise_backward.register_fake
def _(gradient: Tensor, image: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    layout = torch.contiguous_format
    return torch.empty_like(image, memory_format=layout), torch.empty_like(filters, memory_format=layout)


@triton.jit
def filter_taps(filters, channel, used):
    """Return the nine taps of the filters `(C, 9)` of some channels, each `(1, channels)` float32."""
    taps = filters + channel * 9
    return (
        tl.load(taps, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 1, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 2, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 3, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 4, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 5, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 6, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 7, mask=used, other=0.0).to(tl.float32)[None, :],
        tl.load(taps + 8, mask=used, other=0.0).to(tl.float32)[None, :],
    )


@triton.jit
def locate_tile(tile, H, W, rows, STRIP: tl.constexpr):
    """Return the columns of a tile of the image, its first row, and the row after its last."""
    strips = tl.cdiv(W, STRIP)
    x = (tile % strips) * STRIP + tl.arange(0, STRIP)
    first = (tile // strips) * rows
    return x, first, tl.minimum(first + rows, H)


@triton.jit
def load_row(image, y, x, used, H, W, ROW: tl.constexpr):
    """Return row `y` of an image at columns x - 1, x and x + 1, zero outside the image.

    `image` `(1, channels)` points to the first pixel. Pixels are `ROW` values apart. At columns x >= W, all three are
    zero, so that these columns add nothing to sums.
    """
    pixels = image + (y * W).to(tl.int64) * ROW + x[:, None] * ROW
    width = tl.where((y >= 0) & (y < H), W, 0)  # A row outside the image has no pixels.
    left = tl.load(pixels - ROW, mask=used[None, :] & ((x > 0) & (x < width))[:, None], other=0.0)
    centre = tl.load(pixels, mask=used[None, :] & (x < width)[:, None], other=0.0)
    right = tl.load(pixels + ROW, mask=used[None, :] & (x + 1 < width)[:, None], other=0.0)
    return left, centre, right


@triton.jit
def slide(row, taps, above, here):
    """Add a row of the image to the sums of the row above it (which are then complete), of its own, and of the next.

    Returns the complete sums of the row above, and the incomplete ones with which the next row continues.
    """
    left, centre, right = row
    left = left.to(tl.float32)
    centre = centre.to(tl.float32)
    right = right.to(tl.float32)
    complete = above + left * taps[6] + centre * taps[7] + right * taps[8]
    above = here + left * taps[3] + centre * taps[4] + right * taps[5]
    here = left * taps[0] + centre * taps[1] + right * taps[2]
    return complete, above, here


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    image,
    filters,
    out,
    H,
    W,
    rows,
    C: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Convolve `rows` rows of a strip of columns."""
    block, tile, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x, first, last = locate_tile(tile, H, W, rows, STRIP)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    used = channel < C
    taps = filter_taps(filters, channel, used)
    start = sample.to(tl.int64) * H * W
    image += start * ROW
    out += start * C
    above = tl.zeros((STRIP, BLOCK), tl.float32)
    here = above
    for step in range(last - first + 2):
        y = first - 1 + step
        row = load_row(image + channel[None, :], y, x, used, H, W, ROW)
        complete, above, here = slide(row, taps, above, here)
        place = out + ((y - 1) * W).to(tl.int64) * C + (x[:, None] * C + channel[None, :])
        stored = used[None, :] & (x < tl.where(y > first, W, 0))[:, None]
        tl.store(place, complete.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=SIZES)
def _backward_kernel(
    gradient,
    image,
    filters,
    image_gradient,
    partial,
    H,
    W,
    rows,
    C: tl.constexpr,
    GRADIENT_ROW: tl.constexpr,
    ROW: tl.constexpr,
    OUT_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Compute both gradients of `rows` rows of a strip of the image; `(9, C)` sums for the filters go to `partial`."""
    block, tile, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x, first, last = locate_tile(tile, H, W, rows, STRIP)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    used = channel < C
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = filter_taps(filters, channel, used)
    flipped = (t8, t7, t6, t5, t4, t3, t2, t1, t0)
    start = sample.to(tl.int64) * H * W
    gradient += start * GRADIENT_ROW
    image += start * ROW
    image_gradient += start * OUT_ROW
    above = tl.zeros((STRIP, BLOCK), tl.float32)
    here = above
    # Each program pairs its own rows of the image with all rows of the gradient that they touch.
    image_above = above
    image_here = above
    s0 = above
    s1 = above
    s2 = above
    s3 = above
    s4 = above
    s5 = above
    s6 = above
    s7 = above
    s8 = above
    for step in range(last - first + 2):
        y = first - 1 + step
        row = load_row(gradient + channel[None, :], y, x, used, H, W, GRADIENT_ROW)
        pixels = image + ((y + 1) * W).to(tl.int64) * ROW + (x[:, None] * ROW + channel[None, :])
        inside = used[None, :] & (x < tl.where(y + 1 < last, W, 0))[:, None]
        image_below = tl.load(pixels, mask=inside, other=0.0).to(tl.float32)
        complete, above, here = slide(row, flipped, above, here)
        place = image_gradient + ((y - 1) * W).to(tl.int64) * OUT_ROW + (x[:, None] * OUT_ROW + channel[None, :])
        stored = used[None, :] & (x < tl.where(y > first, W, 0))[:, None]
        tl.store(place, complete.to(image_gradient.dtype.element_ty), mask=stored)
        # The filter's tap (dy, dx) multiplies the pixel (y + dy, x + dx) of the image for the gradient at (y, x).
        left, centre, right = row
        left = left.to(tl.float32)
        centre = centre.to(tl.float32)
        right = right.to(tl.float32)
        s0 += image_above * right
        s1 += image_above * centre
        s2 += image_above * left
        s3 += image_here * right
        s4 += image_here * centre
        s5 += image_here * left
        s6 += image_below * right
        s7 += image_below * centre
        s8 += image_below * left
        image_above = image_here
        image_here = image_below
    sums = partial + (sample * tl.num_programs(1) + tile).to(tl.int64) * (9 * C) + channel
    tl.store(sums, tl.sum(s0, 0), mask=used)
    tl.store(sums + C, tl.sum(s1, 0), mask=used)
    tl.store(sums + 2 * C, tl.sum(s2, 0), mask=used)
    tl.store(sums + 3 * C, tl.sum(s3, 0), mask=used)
    tl.store(sums + 4 * C, tl.sum(s4, 0), mask=used)
    tl.store(sums + 5 * C, tl.sum(s5, 0), mask=used)
    tl.store(sums + 6 * C, tl.sum(s6, 0), mask=used)
    tl.store(sums + 7 * C, tl.sum(s7, 0), mask=used)
    tl.store(sums + 8 * C, tl.sum(s8, 0), mask=used)


def evenly_spaced(image: Tensor) -> Tensor:
    """Return an image `(B, H, W, C)` whose pixels are evenly spaced in memory, such as some channels of a larger one.

    Other images are copied.
    """
    _, H, W, _ = image.shape
    row = image.stride(2)
    return image if image.stride() == (H * W * row, W * row, row, 1) else image.contiguous()


def tiling(height: int, width: int, num_images: int, num_programs: int) -> tuple[int, int]:
    """Return how many tiles an image has, and how many rows a tile has, for about `num_programs` programs in all."""
    strips = triton.cdiv(width, STRIP)
    rows = triton.cdiv(height, max(1, triton.cdiv(num_programs, strips * num_images)))
    rows = max(rows, min(height, 8))  # A tile reads a row more at each end.
    return strips * triton.cdiv(height, rows), rows


def constants(num_channels: int, **rows: int) -> dict[str, Any]:
    """Return the sizes for which a kernel is compiled: the channels, the tile and the distances of pixels `rows`."""
    # Triton 3.10 fuses multiply-adds only if it is told to.
    return {"C": num_channels, "BLOCK": BLOCK, "STRIP": STRIP, "enable_fp_fusion": True, **rows}


def convolve(image: Tensor, filters: Tensor) -> Tensor:
    """Convolve an evenly spaced image `(B, H, W, C)` with `filters` `(C, 9)`, and return a contiguous image."""
    B, H, W, C = image.shape
    tiles, rows = tiling(H, W, B * triton.cdiv(C, BLOCK), NUM_PROGRAMS)
    out = torch.empty_like(image, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(image):
        _forward_kernel[(triton.cdiv(C, BLOCK), tiles, B)](
            image, filters.contiguous(), out, H, W, rows, **constants(C, ROW=image.stride(2))
        )
    return out


def convolve_backward(gradient: Tensor, image: Tensor, filters: Tensor, image_gradient: Tensor) -> Tensor:
    """Write the gradient of the image, and return the gradient `(C, 9)` float32 of the filters.

    Args:
        gradient: `(B, H, W, C)`, gradient of the convolved image. All three images are evenly spaced.
        image: `(B, H, W, C)`.
        filters: `(C, 9)`.
        image_gradient: `(B, H, W, C)`, receives the gradient of `image`.
    """
    B, H, W, C = image.shape
    tiles, rows = tiling(H, W, B * triton.cdiv(C, BLOCK), NUM_PROGRAMS)
    partial = image.new_empty(B * tiles, 9, C, dtype=torch.float32)
    with torch.cuda.device_of(image):
        _backward_kernel[(triton.cdiv(C, BLOCK), tiles, B)](
            gradient,
            image,
            filters.contiguous(),
            image_gradient,
            partial,
            H,
            W,
            rows,
            **constants(C, GRADIENT_ROW=gradient.stride(2), ROW=image.stride(2), OUT_ROW=image_gradient.stride(2)),
        )
    return partial.sum(dim=0).T
