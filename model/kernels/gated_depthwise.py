"""Depthwise 3x3 convolutions of two halves of the channels, of which one gates the other by GELU (Restormer, eq. 2).

Let U be the bytes of one half of an image.
- Forward: 3 U. `_gate_kernel` reads both halves and writes the product. Plain PyTorch moves 9 U.
- Backward: 11 U. Only the input is kept. `_gradients_kernel` reads it and the gradient of the product, convolves again,
  and writes the gradients of both convolved halves (5 U). The backward pass of the depthwise convolution then reads the
  input and these gradients and writes the gradient of the input (6 U).

One backward kernel could move 5 U, but would convolve the pixels around each tile twice, and Triton cannot shift a tile
in registers. Instructions limit the kernels about as much as memory does. Compiled for an H100, the forward pass takes
54 instructions per value of the result, and the card can issue about 57 in the time in which it moves their 6 bytes in
bf16.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from upfield.model.kernels.depthwise import (
    BLOCK,
    NUM_PROGRAMS,
    SIZES,
    constants,
    depthwise_backward,
    evenly_spaced,
    filter_taps,
    load_row,
    locate_tile,
    plain_depthwise,
    slide,
    tiling,
)

REGISTERS: dict[str, Any] = {"maxnreg": 128}  # per thread, so that four programs fit on a multiprocessor


def plain_gated_depthwise(halves: Tensor, filters: Tensor) -> Tensor:
    """Convolve both halves and gate the second by the first, in plain PyTorch. This defines `gated_depthwise`.

    Args:
        halves: `(B, H, W, 2*C)`, the gate, then the value.
        filters: `(2*C, 9)`.
    """
    gate, value = plain_depthwise(halves, filters).chunk(2, dim=-1)
    return F.gelu(gate) * value


def gated_depthwise(halves: Tensor, filters: Tensor) -> Tensor:
    """Convolve the channels of two halves, each with its own 3x3 filter, and gate the second half by the first.

    Args:
        halves: `(B, H, W, 2*C)`, the gate, then the value.
        filters: `(2*C, 9)`, in any precision.

    Returns:
        GELU of the convolved gate times the convolved value, `(B, H, W, C)` in the precision of `halves`. It can be
        differentiated once.
    """
    return _GatedDepthwise.apply(halves, filters)  # pyright: ignore[reportReturnType]


class _GatedDepthwise(torch.autograd.Function):
    """Keeps only the inputs for the backward pass, which convolves them again."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(halves, filters)
        return _forward(halves, filters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        halves, filters = ctx.saved_tensors
        return depthwise_backward(_convolved_gradient(gradient, halves, filters), halves, filters)


@torch.library.custom_op("upfield::gated_depthwise", mutates_args=())
def _forward(halves: Tensor, filters: Tensor) -> Tensor:
    """Gate `halves` `(B, H, W, 2*C)`, convolved with `filters` `(2*C, 9)`: `(B, H, W, C)`."""
    halves = evenly_spaced(halves)
    B, H, W, C = (*halves.shape[:3], halves.shape[3] // 2)
    out = halves.new_empty(B, H, W, C)
    tiles, rows = tiling(H, W, B * triton.cdiv(C, BLOCK), NUM_PROGRAMS)
    with torch.cuda.device_of(halves):
        _gate_kernel[(triton.cdiv(C, BLOCK), tiles, B)](
            halves, filters.contiguous(), out, H, W, rows, **constants(C, ROW=halves.stride(2)), **REGISTERS
        )
    return out


@_forward.register_fake
def _(halves: Tensor, filters: Tensor) -> Tensor:
    return halves.new_empty(*halves.shape[:3], halves.shape[3] // 2)


@torch.library.custom_op("upfield::gated_depthwise_gradients", mutates_args=())
def _convolved_gradient(gradient: Tensor, halves: Tensor, filters: Tensor) -> Tensor:
    """Return the gradient `(B, H, W, 2*C)` of the convolved halves.

    Args:
        gradient: `(B, H, W, C)`, gradient of the result.
        halves: `(B, H, W, 2*C)`.
        filters: `(2*C, 9)`.
    """
    gradient, halves = gradient.contiguous(), evenly_spaced(halves)
    B, H, W, C = gradient.shape
    out = torch.empty_like(halves, memory_format=torch.contiguous_format)
    tiles, rows = tiling(H, W, B * triton.cdiv(C, BLOCK), NUM_PROGRAMS)
    with torch.cuda.device_of(halves):
        _gradients_kernel[(triton.cdiv(C, BLOCK), tiles, B)](
            gradient, halves, filters.contiguous(), out, H, W, rows, **constants(C, ROW=halves.stride(2)), **REGISTERS
        )
    return out


@_convolved_gradient.register_fake
def _(gradient: Tensor, halves: Tensor, filters: Tensor) -> Tensor:
    return torch.empty_like(halves, memory_format=torch.contiguous_format)


@triton.jit
def normal_tail(x):
    """Return the normal probability below -|x|, and exp(-x^2 / 2), of float32 values.

    The polynomial is 7.1.26 of Abramowitz and Stegun. Its error of 1.5e-7 in erf is about the rounding of float32. It
    takes fewer instructions than Triton's erf, and the gradient of GELU needs the exponential too.
    """
    y = 1.0 + 0.23164189 * tl.abs(x)
    t = tl.rsqrt(y * y)  # A division takes more instructions.
    exponential = tl.exp2(-0.72134752 * x * x)
    polynomial = (((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796
    return polynomial * t * exponential, exponential


@triton.jit(do_not_specialize=SIZES)
def _gate_kernel(
    halves,
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
    """Convolve and gate `rows` rows of a strip of columns."""
    block, tile, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x, first, last = locate_tile(tile, H, W, rows, STRIP)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    used = channel < C
    gate_taps = filter_taps(filters, channel, used)
    value_taps = filter_taps(filters + 9 * C, channel, used)
    start = sample.to(tl.int64) * H * W
    gates = halves + start * ROW + channel[None, :]
    values = gates + C
    out += start * C
    above = tl.zeros((STRIP, BLOCK), tl.float32)
    here = above
    value_above = above
    value_here = above
    for step in range(last - first + 2):
        y = first - 1 + step
        gate_row = load_row(gates, y, x, used, H, W, ROW)
        value_row = load_row(values, y, x, used, H, W, ROW)
        gate, above, here = slide(gate_row, gate_taps, above, here)
        value, value_above, value_here = slide(value_row, value_taps, value_above, value_here)
        tail = normal_tail(gate)[0]
        product = (tl.maximum(gate, 0.0) - tl.abs(gate) * tail) * value
        place = out + ((y - 1) * W).to(tl.int64) * C + (x[:, None] * C + channel[None, :])
        stored = used[None, :] & (x < tl.where(y > first, W, 0))[:, None]
        tl.store(place, product.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=SIZES)
def _gradients_kernel(
    gradient,
    halves,
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
    """Compute the gradients of both convolved halves in `rows` rows of a strip of columns."""
    block, tile, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x, first, last = locate_tile(tile, H, W, rows, STRIP)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    used = channel < C
    gate_taps = filter_taps(filters, channel, used)
    value_taps = filter_taps(filters + 9 * C, channel, used)
    start = sample.to(tl.int64) * H * W
    gates = halves + start * ROW + channel[None, :]
    values = gates + C
    gradient += start * C
    out += start * (2 * C)
    above = tl.zeros((STRIP, BLOCK), tl.float32)
    here = above
    value_above = above
    value_here = above
    for step in range(last - first + 2):
        y = first - 1 + step
        complete = used[None, :] & (x < tl.where(y > first, W, 0))[:, None]
        offset = ((y - 1) * W).to(tl.int64) * C
        slope = tl.load(gradient + offset + (x[:, None] * C + channel[None, :]), mask=complete, other=0.0)
        gate_row = load_row(gates, y, x, used, H, W, ROW)
        value_row = load_row(values, y, x, used, H, W, ROW)
        gate, above, here = slide(gate_row, gate_taps, above, here)
        value, value_above, value_here = slide(value_row, value_taps, value_above, value_here)
        tail, exponential = normal_tail(gate)
        probability = tl.where(gate < 0, tail, 1.0 - tail)
        slope = slope.to(tl.float32)
        gate_slope = slope * value * (probability + gate * (0.39894228 * exponential))
        value_slope = slope * (gate * probability)
        place = out + 2 * offset + (x[:, None] * (2 * C) + channel[None, :])
        tl.store(place, gate_slope.to(out.dtype.element_ty), mask=complete)
        tl.store(place + C, value_slope.to(out.dtype.element_ty), mask=complete)
