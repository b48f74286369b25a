"""Layer norm over the channels of each pixel, together with the addition of a residual branch before it.

PyTorch's kernel starts one block of threads per pixel, and reads single values if C is not a multiple of 4, as for the
42 channels of the published network. It also leaves two additions to other kernels: that of the residual branch, and in
the backward pass that of the gradient that bypasses the norm. Memory traffic of one norm, in images `(P, C)`:

| | PyTorch | here |
|---|---|---|
| addition and norm | 3 + 2 | 4 |
| backward: gradient of the image, of scale and shift, addition | 3 + 2 + 3 | 4 |

The normalised image may have more channels than the sum, filled with zeros, because matrix products on a GPU are fast
only if each row takes a multiple of 16 bytes. Computing the products here too would save 2 more images forward and 2
backward, which is 1 GB per slice in a step of the `official` preset. It is not done, because the gradients of the
products' weights would then have to normalise the image again, in products of our own.

A program normalises a tile of whole pixels. The tile has the next power of 2 as its number of channels, and the
channels that do not exist are masked. Mean and variance are computed in float32 in two passes over registers. The
backward pass computes them again, because reading them would cost more. Gradients of scale and shift are summed per
program, over the same tiles in the same order each time, and then over programs.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096
"""Values of a forward tile. The backward pass holds two more images in registers and takes half of this."""
MOST_PROGRAMS = 1024
"""Most programs of a backward pass, each of which writes one partial sum per channel."""


def plain_residual_norm(
    x: Tensor, branch: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, width: int = 0
) -> tuple[Tensor, Tensor]:
    """Compute `residual_norm` in plain PyTorch, for `(..., C)` images. This is its definition."""
    total = x if branch is None else (x + branch).to(x.dtype)
    dtype = torch.promote_types(x.dtype, torch.float32)
    normalised = F.layer_norm(total.to(dtype), scale.shape, scale.to(dtype), shift.to(dtype), epsilon)
    return total, F.pad(normalised.to(x.dtype), (0, max(width - len(scale), 0)))


def residual_norm(
    x: Tensor, branch: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, width: int = 0
) -> tuple[Tensor, Tensor]:
    """Add a residual branch and normalise the channels of each pixel of the sum.

    Args:
        x: `(..., C)` image in float32, bf16 or fp16.
        branch: `(..., C)`, the residual branch; None adds nothing.
        scale: `(C,)` in any precision.
        shift: `(C,)` in any precision.
        epsilon: value that is added to the variance.
        width: number of channels of the normalised sum. Zeros fill the channels from C on. At least C are returned.

    Returns:
        The sum `(..., C)`, and the normalised sum `(..., max(C, width))`, both in the precision of `x`. Use this sum
        instead of `x` in what follows, so that the backward pass adds its gradient to that of the norm in the same
        kernel. Both can be differentiated once.
    """
    return _ResidualNorm.apply(x, branch, scale, shift, epsilon, max(width, len(scale)))


class _ResidualNorm(torch.autograd.Function):
    """Keeps only the sum for the backward pass, which normalises it again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, width: int
    ) -> tuple[Tensor, Tensor]:
        x, branch = x.contiguous(), None if branch is None else branch.contiguous()
        total, normalised = torch.ops.upfield.residual_norm(x, branch, scale, shift, epsilon, width)
        if branch is None:
            total = x
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, scale)
        ctx.epsilon, ctx.adds = epsilon, branch is not None
        return total.view_as(total), normalised

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, past_norm: Tensor | None, gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        total, scale = ctx.saved_tensors
        if gradient is None:
            return past_norm, past_norm if ctx.adds else None, None, None, None, None
        past_norm = None if past_norm is None else past_norm.contiguous()
        arguments = (gradient.contiguous(), past_norm, total, scale, ctx.epsilon)
        of_total, of_scale, of_shift = torch.ops.upfield.residual_norm_backward(*arguments)
        return of_total, of_total if ctx.adds else None, of_scale, of_shift, None, None


torch.library.define(
    "upfield::residual_norm",
    "(Tensor x, Tensor? branch, Tensor scale, Tensor shift, float epsilon, int width) -> (Tensor, Tensor)",
)
torch.library.define(
    "upfield::residual_norm_backward",
    "(Tensor gradient, Tensor? past_norm, Tensor total, Tensor scale, float epsilon) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("upfield::residual_norm")
def _empty_results(
    x: Tensor, branch: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, width: int
) -> tuple[Tensor, Tensor]:
    # An operator must not return its input, so the sum is empty if there is no branch.
    total = x.new_empty(0) if branch is None else torch.empty_like(x)
    return total, x.new_empty(*x.shape[:-1], width)


@torch.library.register_fake("upfield::residual_norm_backward")
def _empty_gradients(
    gradient: Tensor, past_norm: Tensor | None, total: Tensor, scale: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(total), torch.empty_like(scale), torch.empty_like(scale)


@torch.library.impl("upfield::residual_norm", ("cpu", "cuda"))
def _residual_norm(
    x: Tensor, branch: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, width: int
) -> tuple[Tensor, Tensor]:
    total, normalised = _empty_results(x, branch, scale, shift, epsilon, width)
    C = scale.numel()
    num_rows = x.numel() // C
    shape = constants(C, width, TILE, branch is not None)
    if num_rows:
        with torch.cuda.device_of(x):
            _add_and_normalise[(triton.cdiv(num_rows, shape["ROWS"]),)](
                x, x if branch is None else branch, scale, shift, total, normalised, num_rows, epsilon,
                **shape,
            )  # fmt: skip
    return total, normalised


@torch.library.impl("upfield::residual_norm_backward", ("cpu", "cuda"))
def _residual_norm_backward(
    gradient: Tensor, past_norm: Tensor | None, total: Tensor, scale: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    C = scale.numel()
    num_rows = total.numel() // C
    shape = constants(C, gradient.shape[-1], TILE // 2, past_norm is not None)
    num_programs = min(triton.cdiv(num_rows, shape["ROWS"]), MOST_PROGRAMS)
    of_total = torch.empty_like(total)
    partial = total.new_empty(num_programs, 2, C, dtype=torch.float32)
    if num_rows:
        with torch.cuda.device_of(total):
            _normalise_backward[(num_programs,)](
                gradient, gradient if past_norm is None else past_norm, total, scale, of_total, partial, num_rows,
                epsilon, **shape,
            )  # fmt: skip
    of_scale, of_shift = partial.sum(dim=0).to(scale.dtype).unbind()
    return of_total, of_scale.clone(), of_shift.clone()


def constants(channels: int, width: int, values: int, adds: bool) -> dict[str, Any]:
    """Return the constants of a kernel whose tile holds about `values` values and which adds a second image or not."""
    columns = triton.next_power_of_2(width)
    return {"ADDS": adds, "C": channels, "D": width, "COLUMNS": columns, "ROWS": max(values // columns, 1)}


@triton.jit
def _add_and_normalise(
    x, branch, scale, shift, total, normalised, num_rows, epsilon,
    ADDS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS  # 32 bits do not hold the offsets of large batches
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    exists = (rows < num_rows - first) & (columns < C)
    start, offsets = first * C, rows * C + columns
    values = tl.load(x + start + offsets, mask=exists, other=0).to(tl.float32)
    if ADDS:
        values += tl.load(branch + start + offsets, mask=exists, other=0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)  # The backward pass normalises what is stored.
        tl.store(total + start + offsets, rounded, mask=exists)
        values = rounded.to(tl.float32)
    centred = tl.where(columns < C, values - tl.sum(values, axis=1, keep_dims=True) / C, 0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / C + epsilon)
    factors = tl.load(scale + columns, mask=columns < C, other=0).to(tl.float32)
    offset = tl.load(shift + columns, mask=columns < C, other=0).to(tl.float32)
    result = centred * (1 / deviation) * factors + offset
    # The masked channels are zero, and they fill the rest of the row.
    offsets, exists = first * D + rows * D + columns, (rows < num_rows - first) & (columns < D)
    tl.store(normalised + offsets, result.to(normalised.dtype.element_ty), mask=exists)


@triton.jit
def _normalise_backward(
    gradient, past_norm, total, scale, of_total, partial, num_rows, epsilon,
    ADDS: tl.constexpr, C: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    offsets = rows * C + columns
    factors = tl.load(scale + columns, mask=columns < C, other=0).to(tl.float32)
    of_scale = tl.zeros([1, COLUMNS], tl.float32)
    of_shift = tl.zeros([1, COLUMNS], tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for _ in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        start = first * C
        exists = (rows < num_rows - first) & (columns < C)
        values = tl.load(total + start + offsets, mask=exists, other=0).to(tl.float32)
        incoming = tl.load(gradient + first * D + rows * D + columns, mask=exists, other=0).to(tl.float32)
        centred = tl.where(columns < C, values - tl.sum(values, axis=1, keep_dims=True) / C, 0)
        inverse = 1 / tl.sqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / C + epsilon)
        direction = centred * inverse
        of_scale += tl.sum(incoming * direction, axis=0, keep_dims=True)
        of_shift += tl.sum(incoming, axis=0, keep_dims=True)
        incoming *= factors
        along = tl.sum(incoming * direction, axis=1, keep_dims=True) / C
        mean = tl.sum(incoming, axis=1, keep_dims=True) / C
        result = (incoming - direction * along - mean) * inverse
        if ADDS:
            result += tl.load(past_norm + start + offsets, mask=exists, other=0).to(tl.float32)
        tl.store(of_total + start + offsets, result.to(of_total.dtype.element_ty), mask=exists)
        first += tl.num_programs(0) * ROWS
    sums = partial + tl.program_id(0) * 2 * C + columns
    tl.store(sums, of_scale, mask=columns < C)
    tl.store(sums + C, of_shift, mask=columns < C)
