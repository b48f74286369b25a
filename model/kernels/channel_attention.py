"""Depthwise queries and keys of channel attention, reduced to squared norms and products without being stored.

Of the convolved queries and keys, channel attention needs only the squared norm of each channel and the products of
channels within a head, which are sums over all pixels. Let U be the bytes of C channels of an image.
- Forward: 2 U. `_sum_products` reads queries and keys, convolves them strip by strip, keeps the sums on the chip and
  writes them once. PyTorch adds the sums of all programs in a fixed order. Plain PyTorch moves 8 U, and keeps the
  convolved queries and keys for the backward pass.
- Backward: 10 U. `_compute_gradients` reads queries and keys, convolves them again, and writes the gradients of the
  convolved ones (4 U). The backward pass of a depthwise convolution follows (6 U). Plain PyTorch moves 12 U.

One backward kernel would move 4 U, but it would convolve the pixels around each tile twice and shift its gradients
between threads. The convolutions take 27 multiply-adds per value in any case, and instructions would then limit the
kernel to about the time in which an H100 moves the 10 U.

Products are computed on tensor cores from factors in the precision of the image, and added in float32. Full float32
products have no tensor cores, so in float32 the kernels are for tests.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from upfield.model.kernels.depthwise import (
    SIZES,
    STRIP,
    convolve,
    convolve_backward,
    evenly_spaced,
    filter_taps,
    load_row,
    locate_tile,
    plain_depthwise,
    slide,
    tiling,
)

NUM_PROGRAMS = 528  # four for each of the 132 multiprocessors of an H100


def plain_channel_attention(qkv: Tensor, filters: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve queries, keys and values depthwise, and sum squares and products of queries and keys over the pixels.

    Args:
        qkv: `(B, H, W, 3*D)`: queries, keys and values before their depthwise filters.
        filters: one 3x3 filter per channel, `(3*C, 9)`, C up to D. Channels of a third beyond C become zero.
        num_heads: number of heads, each of c = C / heads channels.

    Returns:
        The sums of squares `(B, 2, heads, c)` of queries and keys, and the sums of products `(B, heads, c, c)` of each
        query channel with each key channel, in float32, or float64 for float64 images. Then the convolved values
        `(B, H, W, D)` in the precision of `qkv`.
    """
    C = len(filters) // 3
    q, k, v = plain_depthwise(qkv, _pad_filters(qkv, filters)).chunk(3, dim=-1)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k = (each[..., :C].flatten(1, 2).unflatten(-1, (num_heads, -1)).to(dtype) for each in (q, k))  # (B, P, heads, c)
    squares = torch.stack([q.square().sum(dim=1), k.square().sum(dim=1)], dim=1)
    return squares, torch.einsum("bphi,bphj->bhij", q, k), v


def channel_attention(qkv: Tensor, filters: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `plain_channel_attention` by kernels.

    Args:
        qkv: `(B, H, W, 3*D)`, in float16, bfloat16 or float32.
        filters: `(3*C, 9)` in any precision, C up to D.
        num_heads: number of heads, each of at most 120 channels.

    Returns:
        Sums of squares `(B, 2, heads, c)` and products `(B, heads, c, c)` in float32, and values `(B, H, W, D)`.
    """
    return _ChannelAttention.apply(qkv, filters, num_heads)  # pyright: ignore[reportReturnType]


class _ChannelAttention(torch.autograd.Function):
    """Keeps `qkv` for the backward pass, which convolves queries and keys again."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, filters: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        squares, products, v = channel_attention_forward(qkv, filters, num_heads)
        ctx.save_for_backward(qkv, filters, squares)
        return squares, products, v

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, squares_gradient: Tensor, products_gradient: Tensor, v_gradient: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        qkv, filters, squares = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        gradients = channel_attention_backward(qkv, filters, squares, squares_gradient, products_gradient, v_gradient)
        return *gradients, None


@torch.library.custom_op("upfield::channel_attention", mutates_args=())
def channel_attention_forward(qkv: Tensor, filters: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `plain_channel_attention` from `qkv` `(B, H, W, 3*D)` and `filters` `(3*C, 9)`."""
    qkv = qkv.contiguous()
    B, H, W, D = *qkv.shape[:3], qkv.shape[3] // 3
    c = len(filters) // 3 // num_heads
    padded = _pad_filters(qkv, filters)
    tiles, rows = tiling(H, W, B * num_heads, NUM_PROGRAMS)
    partial = qkv.new_empty((B, num_heads, tiles, c * c + 2 * c), dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _sum_products[tiles, num_heads, B](qkv, padded, partial, H, W, rows, **_constants(qkv, num_heads, c))
    products, q_squares, k_squares = partial.sum(dim=2).split([c * c, c, c], dim=-1)
    squares = torch.stack([q_squares, k_squares], dim=1)
    v = convolve(qkv[..., 2 * D :], padded[2 * D :])
    return squares, products.unflatten(-1, (c, c)).contiguous(), v


@channel_attention_forward.register_fake
def _(qkv: Tensor, filters: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    B, c = len(qkv), len(filters) // 3 // num_heads
    squares = qkv.new_empty((B, 2, num_heads, c), dtype=torch.float32)
    products = qkv.new_empty((B, num_heads, c, c), dtype=torch.float32)
    return squares, products, qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("upfield::channel_attention_backward", mutates_args=())
def channel_attention_backward(
    qkv: Tensor,
    filters: Tensor,
    squares: Tensor,
    squares_gradient: Tensor,
    products_gradient: Tensor,
    v_gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `qkv` `(B, H, W, 3*D)` and `filters` `(3*C, 9)` from those of the three results.

    Let q be a query channel divided by its norm, and k the key channels likewise. The gradient of the query channel is
    (slope * q + factors @ k) / norm. So the factors of a product neither overflow nor vanish in float16, whatever the
    norms are.
    """
    qkv, v_gradient = qkv.contiguous(), evenly_spaced(v_gradient)
    B, H, W, D = *qkv.shape[:3], qkv.shape[3] // 3
    num_heads, c = products_gradient.shape[1:3]
    least_norm = 1e-4 if qkv.dtype == torch.float16 else 1e-12
    norms = squares.clamp_min(least_norm**2).sqrt()  # (B, 2, heads, c)
    slopes = 2 * squares_gradient * norms.square()
    factors = products_gradient * norms[:, 0].unsqueeze(-1) * norms[:, 1].unsqueeze(-2)
    padded = _pad_filters(qkv, filters)
    gradient = qkv.new_empty((B, H, W, 2 * D))
    tiles, rows = tiling(H, W, B * num_heads, NUM_PROGRAMS)
    small = (norms.reciprocal().contiguous(), slopes.contiguous(), factors.contiguous())
    with torch.cuda.device_of(qkv):
        _compute_gradients[tiles, num_heads, B](
            qkv, padded, *small, gradient, H, W, rows, **_constants(qkv, num_heads, c)
        )
    qkv_gradient = torch.empty_like(qkv)
    filter_gradients = [
        convolve_backward(each, qkv[..., part], padded[part], qkv_gradient[..., part])
        for each, part in ((gradient, slice(0, 2 * D)), (v_gradient, slice(2 * D, 3 * D)))
    ]
    filter_gradient = torch.cat(filter_gradients).unflatten(0, (3, D))[:, : num_heads * c]
    return qkv_gradient, filter_gradient.flatten(0, 1).to(filters.dtype)


@channel_attention_backward.register_fake
def _(
    qkv: Tensor,
    filters: Tensor,
    squares: Tensor,
    squares_gradient: Tensor,
    products_gradient: Tensor,
    v_gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    layout = torch.contiguous_format
    return torch.empty_like(qkv, memory_format=layout), torch.empty_like(filters, memory_format=layout)


def _pad_filters(qkv: Tensor, filters: Tensor) -> Tensor:
    """Append filters of zeros to each third of `filters` `(3*C, 9)`, one per channel of `qkv` `(B, H, W, 3*D)`."""
    return F.pad(filters.unflatten(0, (3, -1)), (0, 0, 0, (qkv.shape[-1] - len(filters)) // 3)).flatten(0, 1)


def _constants(qkv: Tensor, num_heads: int, c: int) -> dict[str, Any]:
    """Return the constants of the kernels. More warps share the products of larger heads, which take more registers."""
    D = qkv.shape[-1] // 3
    lanes = max(16, triton.next_power_of_2(D - (num_heads - 1) * c))
    types = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return {
        "HEADS": num_heads,
        "c": c,
        "D": D,
        "LANES": lanes,
        "STRIP": STRIP,
        # Triton's interpreter, which runs on the CPU, multiplies bfloat16 wrongly.
        "FACTOR": tl.float32 if qkv.device.type == "cpu" else types[qkv.dtype],
        "num_warps": {16: 4, 32: 4, 64: 8, 128: 16}[lanes],
        "enable_fp_fusion": True,  # Triton 3.10 fuses multiply-adds only if it is told to.
        "maxnreg": 128 if lanes < 128 else None,
    }


@triton.jit
def _factor(tile, image, FACTOR: tl.constexpr):
    """Round a tile to the precision of the image, for a product."""
    return tile.to(image.dtype.element_ty).to(FACTOR)


@triton.jit
def _scale(taps, scale):
    """Multiply the nine taps of each channel by a number."""
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = taps
    return t0 * scale, t1 * scale, t2 * scale, t3 * scale, t4 * scale, t5 * scale, t6 * scale, t7 * scale, t8 * scale


@triton.jit(do_not_specialize=SIZES)
def _sum_products(
    qkv,
    filters,
    partial,
    H,
    W,
    rows,
    HEADS: tl.constexpr,
    c: tl.constexpr,
    D: tl.constexpr,
    LANES: tl.constexpr,
    STRIP: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Write products, squares of queries and squares of keys of one head, summed over a strip of `rows` rows."""
    head, image = tl.program_id(1), tl.program_id(2)
    x, first, last = locate_tile(tl.program_id(0), H, W, rows, STRIP)
    # Two channels per thread: the filters of more would take too many registers.
    lanes = tl.max_contiguous(tl.arange(0, LANES), 2)
    used = lanes < c
    q_image = qkv + image.to(tl.int64) * H * W * (3 * D) + (head * c + lanes)[None, :]
    k_image = q_image + D
    q_taps = filter_taps(filters, head * c + lanes, used)
    k_taps = filter_taps(filters, D + head * c + lanes, used)
    zero = tl.zeros((STRIP, LANES), tl.float32)
    q_above, q_here, k_above, k_here, q_squares, k_squares = zero, zero, zero, zero, zero, zero
    products = tl.zeros((LANES, LANES), tl.float32)
    for step in range(2):
        q_row = load_row(q_image, first - 1 + step, x, used, H, W, 3 * D)
        k_row = load_row(k_image, first - 1 + step, x, used, H, W, 3 * D)
        _, q_above, q_here = slide(q_row, q_taps, q_above, q_here)
        _, k_above, k_here = slide(k_row, k_taps, k_above, k_here)
    q_row = load_row(q_image, first + 1, x, used, H, W, 3 * D)
    k_row = load_row(k_image, first + 1, x, used, H, W, 3 * D)
    for step in range(last - first):
        # The next row is on its way while this one is computed.
        q_next = load_row(q_image, first + 2 + step, x, used, H, W, 3 * D)
        k_next = load_row(k_image, first + 2 + step, x, used, H, W, 3 * D)
        q, q_above, q_here = slide(q_row, q_taps, q_above, q_here)
        k, k_above, k_here = slide(k_row, k_taps, k_above, k_here)
        q_squares += q * q
        k_squares += k * k
        products = tl.dot(tl.trans(_factor(q, qkv, FACTOR)), _factor(k, qkv, FACTOR), products, input_precision="ieee")
        q_row, k_row = q_next, k_next

    program = (image * HEADS + head) * tl.num_programs(0) + tl.program_id(0)
    partial += program.to(tl.int64) * (c * c + 2 * c)
    keys = tl.arange(0, LANES)
    valid = used[:, None] & (keys < c)[None, :]
    tl.store(partial + lanes[:, None] * c + keys[None, :], products, mask=valid)
    tl.store(partial + c * c + lanes, tl.sum(q_squares, 0), mask=used)
    tl.store(partial + c * c + c + lanes, tl.sum(k_squares, 0), mask=used)


@triton.jit(do_not_specialize=SIZES)
def _compute_gradients(
    qkv,
    filters,
    inverse_norms,
    slopes,
    factors,
    gradient,
    H,
    W,
    rows,
    HEADS: tl.constexpr,
    c: tl.constexpr,
    D: tl.constexpr,
    LANES: tl.constexpr,
    STRIP: tl.constexpr,
    FACTOR: tl.constexpr,
):
    """Write the gradients of convolved queries and keys, `(B, H, W, 2*D)`, of one head in a strip of `rows` rows."""
    head, image = tl.program_id(1), tl.program_id(2)
    x, first, last = locate_tile(tl.program_id(0), H, W, rows, STRIP)
    lanes = tl.max_contiguous(tl.arange(0, LANES), 2)
    used = lanes < c
    q_image = qkv + image.to(tl.int64) * H * W * (3 * D) + (head * c + lanes)[None, :]
    k_image = q_image + D
    channels = (image * 2 * HEADS + head) * c + lanes
    q_scale = tl.load(inverse_norms + channels, mask=used, other=0.0)[None, :]
    k_scale = tl.load(inverse_norms + HEADS * c + channels, mask=used, other=0.0)[None, :]
    q_taps = _scale(filter_taps(filters, head * c + lanes, used), q_scale)
    k_taps = _scale(filter_taps(filters, D + head * c + lanes, used), k_scale)
    q_slope = tl.load(slopes + channels, mask=used, other=0.0)[None, :]
    k_slope = tl.load(slopes + HEADS * c + channels, mask=used, other=0.0)[None, :]
    keys = tl.arange(0, LANES)
    places = (image * HEADS + head) * (c * c) + keys[:, None] * c + keys[None, :]
    matrix = tl.load(factors + places, mask=(keys < c)[:, None] & (keys < c)[None, :], other=0.0)
    to_keys = _factor(matrix, qkv, FACTOR)
    to_queries = tl.trans(to_keys)
    gradient += image.to(tl.int64) * H * W * (2 * D)
    places = x[:, None] * (2 * D) + (head * c + lanes)[None, :]
    # The last head also writes the zeros of the channels that only pad an image.
    owned = tl.where(head == HEADS - 1, lanes < D - (HEADS - 1) * c, used)
    stored = (x < W)[:, None] & owned[None, :]
    zero = tl.zeros((STRIP, LANES), tl.float32)
    q_above, q_here, k_above, k_here = zero, zero, zero, zero
    for step in range(2):
        q_row = load_row(q_image, first - 1 + step, x, used, H, W, 3 * D)
        k_row = load_row(k_image, first - 1 + step, x, used, H, W, 3 * D)
        _, q_above, q_here = slide(q_row, q_taps, q_above, q_here)
        _, k_above, k_here = slide(k_row, k_taps, k_above, k_here)
    q_row = load_row(q_image, first + 1, x, used, H, W, 3 * D)
    k_row = load_row(k_image, first + 1, x, used, H, W, 3 * D)
    for step in range(last - first):
        q_next = load_row(q_image, first + 2 + step, x, used, H, W, 3 * D)
        k_next = load_row(k_image, first + 2 + step, x, used, H, W, 3 * D)
        q, q_above, q_here = slide(q_row, q_taps, q_above, q_here)
        k, k_above, k_here = slide(k_row, k_taps, k_above, k_here)
        q_sum = tl.dot(_factor(k, qkv, FACTOR), to_queries, input_precision="ieee") + q_slope * q
        k_sum = tl.dot(_factor(q, qkv, FACTOR), to_keys, input_precision="ieee") + k_slope * k
        row = gradient + ((first + step) * W).to(tl.int64) * (2 * D)
        tl.store(row + places, (q_scale * q_sum).to(gradient.dtype.element_ty), mask=stored)
        tl.store(row + D + places, (k_scale * k_sum).to(gradient.dtype.element_ty), mask=stored)
        q_row, k_row = q_next, k_next
