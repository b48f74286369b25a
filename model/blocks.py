"""The Restormer block (Zamir et al., CVPR 2022, arXiv 2111.09881), and the layers that change the resolution.

Module and parameter names are those of the published AMIR checkpoints. Images are `(B, H, W, C)` in memory throughout.
Layer norm, 1x1 convolutions and channel attention therefore read contiguous rows of channels, and depthwise
convolutions process vectors of channels. Modules that change the resolution receive the same memory as `(B, C, H, W)`
channels-last views. A block's convolution modules only hold the parameters under their published names.
`pointwise` and `depthwise` apply the weights of these modules in this layout.

Attention and feed-forward layer have two paths with the same result. A CPU spends its time on arithmetic and copies, so
queries, keys, values and both halves are separate contiguous images there. A GPU spends its time on memory traffic and
launches, so they are columns of one image there: one product reads the input once, and one computes its gradient.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPSILON = 1e-12  # default of F.normalize
HALF_NORM_EPSILON = 1e-4  # Gradients contain the inverse of this value, which must not overflow in half precision.
# If rows of channels start at multiples of 8, a CPU reads whole vectors, and a GPU can use its tensor cores.
ROW_MULTIPLE = 8
MOST_PARTS = 8  # See ChannelAttention._merged_scores.
MOST_HEAD_CHANNELS = 120  # The kernel of channel attention has 128 channels in a tile, up to 7 of them for padding.


def next_multiple(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return (number + multiple - 1) // multiple * multiple


def pad_rows(rows: Tensor) -> Tensor:
    """Append rows of zeros to `rows` `(..., R, C)` up to a multiple of 8 rows."""
    num_rows = rows.shape[-2]
    return F.pad(rows, (0, 0, 0, next_multiple(num_rows, ROW_MULTIPLE) - num_rows))


def pad_groups(weight: Tensor, num_groups: int) -> Tensor:
    """Append rows of zeros to each of `num_groups` equal groups of rows of `weight` `(groups*R, C)`, to 8n rows."""
    return pad_rows(weight.unflatten(0, (num_groups, -1))).flatten(0, 1)


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution with `weight` `(out, C)` to `x` `(B, H, W, C)` and return `(B, H, W, out)`.

    Zeros may pad the channels of `x`.

    On a CPU, oneDNN's convolution took a tenth less time than the equivalent matrix product, forward and backward.
    """
    if padding := x.shape[-1] - weight.shape[1]:
        weight = F.pad(weight, (0, padding))
    if x.device.type == "cpu":
        return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None]).permute(0, 2, 3, 1)
    return F.linear(x, weight)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel of `x` `(B, H, W, C)` with its own 3x3 kernel, a row of `weight` `(C, 9)`."""
    kernels = weight.unflatten(1, (1, 3, 3))
    return F.conv2d(x.permute(0, 3, 1, 2), kernels, padding=1, groups=len(kernels)).permute(0, 2, 3, 1)


def checkpointed(function: Callable[..., Tensor], *inputs: Tensor, enabled: bool) -> Tensor:
    """Call a function of tensors of any shape, with activation checkpointing if it is enabled.

    With checkpointing, only the inputs of the function are kept, and the backward pass recomputes its inner tensors.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)


class DeviceDependent(nn.Module):
    """A module with two paths that have the same result, one for CPUs and one for GPUs."""

    gpu_path: bool | None = None
    """Whether to take the path for GPUs; by default, the device of the input decides. Tests and benchmarks set it."""

    def takes_gpu_path(self, x: Tensor) -> bool:
        """Return whether to take the path for GPUs, given the input `x` of any shape."""
        return x.device.type == "cuda" if self.gpu_path is None else self.gpu_path


class GeluGate(torch.autograd.Function):
    """GELU of the first half of the channels times the second half.

    Autograd would compute the gradients of both halves separately and then copy them into one image.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Return the gated values `(..., hidden)` of `both` halves `(..., 2*hidden)`."""
        gate, value = both.chunk(2, dim=-1)
        activation = F.gelu(gate)
        ctx.save_for_backward(both, activation)
        return activation * value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradient of both halves `(..., 2*hidden)` from that of the gated values `(..., hidden)`."""
        both, activation = ctx.saved_tensors
        gate, value = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        to_gate, to_value = result.chunk(2, dim=-1)
        torch.ops.aten.gelu_backward.grad_input(gradient * value, gate, grad_input=to_gate)
        torch.mul(gradient, activation, out=to_value)
        return result


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel. If `fused` is true, it uses the Triton kernel `layer_norm`."""

    kernel = "layer_norm"
    fused = False

    def __init__(self, channels: int) -> None:
        """Create a scale and a shift for each of `channels` channels."""
        super().__init__()
        self.body = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `(B, H, W, C)` in its own precision, with float32 statistics."""
        if self.fused:
            return self._fused(x)[1]
        # Autocast would convert the image to float32 and back, and keep the float32 copy for the backward pass.
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.body.weight.to(x.dtype), self.body.bias.to(x.dtype)
            if x.device.type == "cpu" and x.dtype.itemsize == 2 and torch.is_grad_enabled():
                # In half precision, PyTorch's layer norm on CPUs sums the gradients of scale and shift over all pixels
                # in half precision, where sums stop growing. Gradients of the other operators are summed in float32.
                return torch.addcmul(shift, F.layer_norm(x, self.body.normalized_shape, eps=self.body.eps), scale)
            return F.layer_norm(x, self.body.normalized_shape, scale, shift, self.body.eps)

    def add(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add a residual `branch` to `x`, both `(B, H, W, C)`, and return the sum and the normalised sum.

        If the norm is fused, zeros pad the channels of the normalised sum to a multiple of 8.
        """
        if self.fused:
            return self._fused(x, branch, width=next_multiple(x.shape[-1], ROW_MULTIPLE))
        total = x if branch is None else x + branch
        return total, self(total)

    def _fused(self, x: Tensor, branch: Tensor | None = None, width: int = 0) -> tuple[Tensor, Tensor]:
        from upfield.model.kernels.layer_norm import residual_norm

        return residual_norm(x, branch, self.body.weight, self.body.bias, self.body.eps, width)


class ChannelAttention(DeviceDependent):
    """Channel attention (Restormer, eq. 1): a (C/heads, C/heads) matrix per head, with cost linear in the pixels.

    If `fused` is true, it uses the Triton kernel `channel_attention`.
    """

    kernel = "channel_attention"
    fused = False
    recompute = False

    def __init__(self, channels: int, num_heads: int) -> None:
        """Create the projections and one temperature per head."""
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the channels of `x` `(B, H, W, C)`."""
        if self.fused or self.takes_gpu_path(x):
            qkv = pointwise(x, pad_groups(self.qkv.weight.flatten(1), 3))
            return checkpointed(self._attend_merged, qkv, enabled=self.recompute)
        # Three convolutions are used instead of splitting the result of one, so that each result and its gradient are
        # contiguous.
        q, k, v = (pointwise(x, weight) for weight in self.qkv.weight.flatten(1).chunk(3))
        return checkpointed(self._attend, q, k, v, enabled=self.recompute)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Apply the depthwise filters to queries, keys and values, each `(B, H, W, C)`, then attend and project."""
        B, H, W, C = q.shape
        filters = self.qkv_dwconv.weight.flatten(1).chunk(3)
        q, k, v = (depthwise(each, weight).flatten(1, 2) for each, weight in zip((q, k, v), filters, strict=True))
        matrix = self._mixing(self._scores(q, k))  # (B, C, C) from (B, P, C), P = H*W
        return (v @ matrix.transpose(-2, -1).to(v.dtype)).reshape(B, H, W, C)

    def _attend_merged(self, qkv: Tensor) -> Tensor:
        """Compute `_attend` from one image `(B, H, W, 3*D)`: three groups of C channels, zero-padded to D = 8n."""
        B, H, W, D = *qkv.shape[:3], qkv.shape[3] // 3
        C = self.project_out.weight.shape[0]
        filters = self.qkv_dwconv.weight.flatten(1)
        if self._takes_kernel(qkv):
            from upfield.model.kernels.channel_attention import channel_attention

            squares, products, v = channel_attention(qkv, filters, self.num_heads)
            epsilon = HALF_NORM_EPSILON if qkv.dtype == torch.float16 else NORM_EPSILON
            scores = self._cosines(products, *squares.flatten(2).unbind(1), epsilon=epsilon)
            v = v.flatten(1, 2)
        else:
            qk, v = depthwise(qkv, pad_groups(filters, 3)).flatten(1, 2).split((2 * D, D), dim=-1)  # views
            scores = self._merged_scores(qk, C, num_parts=math.gcd(H, MOST_PARTS))
        matrix = self._mixing(scores)
        return (v @ F.pad(matrix, (0, D - C)).transpose(-2, -1).to(v.dtype)).reshape(B, H, W, C)

    def _takes_kernel(self, qkv: Tensor) -> bool:
        """Return whether to use the kernel for `qkv` `(B, H, W, 3*D)`. It is slow in float32 and for large heads."""
        channels = self.project_out.weight.shape[0] // self.num_heads
        return self.fused and qkv.dtype.itemsize == 2 and channels <= MOST_HEAD_CHANNELS

    def _mixing(self, scores: Tensor) -> Tensor:
        """Return the matrix `(B, C, C)` of each image that attends by `scores` `(B, heads, c, c)` and then projects.

        Attention and projection are combined into one matrix per image, so that products are (C, C), not (P, C).
        """
        attention = scores.softmax(dim=-1)
        out = self.project_out.weight.flatten(1).unflatten(1, (self.num_heads, -1)).to(attention.dtype)  # (C, heads, c)
        return torch.einsum("ohi,bhij->bohj", out, attention).flatten(2)

    def _merged_scores(self, qk: Tensor, channels: int, num_parts: int) -> Tensor:
        """Compute `_scores` from queries and keys side by side.

        The products between all channels hold the squared norms on their diagonal, so one product computes everything.

        Args:
            qk: `(B, P, 2*D)`, two groups of C channels, padded with zeros.
            channels: C.
            num_parts: number of parts into which the pixels are divided. A product of few channels over many pixels
                would occupy few of a GPU's processors; one product per part occupies more.
        """
        normalised = qk.dtype == torch.float16
        if normalised:
            qk = F.normalize(qk.float(), dim=1, eps=HALF_NORM_EPSILON).to(qk.dtype)
        parts = qk.unflatten(1, (num_parts, -1))
        dtype = torch.promote_types(qk.dtype, torch.float32)
        half = (parts.detach().transpose(-2, -1) @ parts).sum(dim=1, dtype=dtype)
        # The value is that of `half`. The gradient is that of both factors, but in one product instead of two.
        products = half + half.transpose(-2, -1) - half.detach()
        products = products.unflatten(2, (2, -1)).unflatten(1, (2, -1))[:, :, :channels, :, :channels]
        scores = self._head_blocks(products[:, 0, :, 1])
        if normalised:
            return scores * self.temperature
        squares = products.diagonal(dim1=1, dim2=3).diagonal(dim1=1, dim2=2)  # (B, 2, C)
        return self._cosines(scores, squares[:, 0], squares[:, 1])

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Compute temperature times cosine between the channels of `q` and `k` `(B, P, C)`: `(B, heads, c, c)`."""
        if q.dtype == torch.float16:
            # A sum of 50,000 products overflows in half precision, so normalise first.
            q, k = (F.normalize(t.float(), dim=1, eps=HALF_NORM_EPSILON).to(t.dtype) for t in (q, k))
            return self._products(q, k) * self.temperature
        # Multiply first and divide by the norms afterwards, so that neither q nor k is copied.
        dtype = torch.promote_types(q.dtype, torch.float32)
        squares = [(t * t).sum(dim=1, dtype=dtype) for t in (q, k)]
        return self._cosines(self._products(q, k), *squares)

    def _cosines(self, products: Tensor, *squares: Tensor, epsilon: float = NORM_EPSILON) -> Tensor:
        """Divide `products` `(B, heads, c, c)` by the norms of q and k, from their `squares` `(B, C)`."""
        rows, columns = (s.clamp_min(epsilon**2).sqrt().unflatten(1, (self.num_heads, -1)) for s in squares)
        return products * (self.temperature / rows.unsqueeze(-1)) / columns.unsqueeze(-2)

    def _products(self, q: Tensor, k: Tensor) -> Tensor:
        """Compute the products between the channels of each head of `q` and `k` `(B, P, C)`: `(B, heads, c, c)`.

        One product over all channels is computed, and each head uses its diagonal block. This is cheaper than one
        product per head, which would need a copy of each head's channels.
        """
        products = (q.transpose(-2, -1) @ k).to(torch.promote_types(q.dtype, torch.float32))
        return self._head_blocks(products)

    def _head_blocks(self, products: Tensor) -> Tensor:
        """Return the diagonal blocks `(B, heads, c, c)` of `products` `(B, C, C)`."""
        per_head = products.unflatten(2, (self.num_heads, -1)).unflatten(1, (self.num_heads, -1))
        return per_head.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


class GatedFeedForward(DeviceDependent):
    """Feed-forward layer with depthwise convolutions; half of the channels gate the rest (Restormer, eq. 2).

    If `fused` is true, it uses the Triton kernel `gated_depthwise`.
    """

    kernel = "gated_depthwise"
    fused = False
    recompute = False

    def __init__(self, channels: int, expansion: float) -> None:
        """Create the layer with `int(channels * expansion)` hidden channels."""
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` `(B, H, W, C)`."""
        if self.fused or self.takes_gpu_path(x):
            both = pointwise(x, pad_groups(self.project_in.weight.flatten(1), 2))
            return checkpointed(self._gate_merged, both, enabled=self.recompute)
        gate, value = (pointwise(x, weight) for weight in self._halves(self.project_in.weight))
        return checkpointed(self._gate, gate, value, enabled=self.recompute)

    def _gate(self, gate: Tensor, value: Tensor) -> Tensor:
        """Apply the depthwise filters to both halves, each `(B, H, W, hidden)`, then gate and project."""
        gate_filter, value_filter = self._halves(self.dwconv.weight)
        product = F.gelu(depthwise(gate, gate_filter)) * depthwise(value, value_filter)
        return pointwise(product, pad_rows(self.project_out.weight.flatten(1).T).T)

    def _gate_merged(self, both: Tensor) -> Tensor:
        """Compute `_gate` from one image `(B, H, W, 2*hidden)` that holds both halves side by side."""
        filters = pad_groups(self.dwconv.weight.flatten(1), 2)
        if self.fused:
            from upfield.model.kernels.gated_depthwise import gated_depthwise

            product = gated_depthwise(both, filters)
        elif torch.compiler.is_compiling():  # The compiler itself writes both gradients into one image.
            gate, value = depthwise(both, filters).chunk(2, dim=-1)
            product = F.gelu(gate) * value
        else:
            product = GeluGate.apply(depthwise(both, filters))
        return pointwise(product, pad_rows(self.project_out.weight.flatten(1).T).T)

    @staticmethod
    def _halves(weight: Tensor) -> tuple[Tensor, ...]:
        """Split the rows of `weight` `(2*hidden, ...)` into two halves, each padded with rows of zeros.

        Odd numbers of channels, such as the published 111 and 223, take a tenth more time. The padded channels stay
        zero through both convolutions and the gate.
        """
        return pad_rows(weight.flatten(1).unflatten(0, (2, -1))).unbind(0)


class TransformerBlock(nn.Module):
    """Channel attention, then a gated feed-forward layer, each with layer norm before it and a residual connection."""

    def __init__(self, channels: int, num_heads: int, expansion: float) -> None:
        """Create the norms, the attention and the feed-forward layer of one block."""
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = ChannelAttention(channels, num_heads)
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedFeedForward(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` `(B, H, W, C)`."""
        x, normalised = self.norm1.add(x)
        x, normalised = self.norm2.add(x, self.attn(normalised))
        return x + self.ffn(normalised)


class Downsample(nn.Module):
    """Halve the resolution and double the channels: (B, C, H, W) -> (B, 2C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        """Create the convolution, which halves the number of channels before pixel-unshuffle multiplies it by four."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels // 2, kernel_size=3, padding=1, bias=False), nn.PixelUnshuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution of `x` `(B, C, H, W)`."""
        # On a GPU, the result of pixel-unshuffle is not channels-last.
        return self.body(x).contiguous(memory_format=torch.channels_last)


class Upsample(nn.Module):
    """Double the resolution and halve the channels: (B, C, H, W) -> (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        """Create the convolution, which doubles the number of channels before pixel-shuffle divides it by four."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1, bias=False), nn.PixelShuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Double the resolution of `x` `(B, C, H, W)`."""
        # On a GPU, the result of pixel-shuffle is not channels-last.
        return self.body(x).contiguous(memory_format=torch.channels_last)


class PatchEmbed(nn.Module):
    """Embed the input slices in the network's channels: (B, S, H, W) -> (B, C, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        """Create the convolution from `in_channels` slices to `channels` channels."""
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed `x` `(B, S, H, W)`."""
        return self.proj(x)
