"""The Restormer block (Zamir et al., CVPR 2022, arXiv 2111.09881) and the changes of resolution.

Module and parameter names are those of the published AMIR checkpoints. Images are `(B, H, W, C)` in memory throughout:
layer norm, 1x1 convolutions and attention between channels then read rows of channels as they lie, and depthwise
convolutions run over vectors of them. Modules that change the resolution take the same memory as `(B, C, H, W)`
channels-last views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-12  # F.normalize's


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        """Make scale and shift of `channels`."""
        super().__init__()
        self.body = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `(B, H, W, C)`."""
        return self.body(x)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias, done as the matrix product that it is where that is faster.

    On a CPU oneDNN's convolution over channels-last memory took half the time of the matrix product at the two upper
    levels, forward and backward; on a GPU the product needs no choice of algorithm.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Make the weights, `(out, in, 1, 1)` as checkpoints have them."""
        super().__init__(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch names it so
        """Mix the channels of `input` `(B, H, W, C)`."""
        if input.device.type == "cpu":
            return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.linear(input, self.weight.flatten(1))


class Depthwise(nn.Conv2d):
    """A 3x3 convolution of each channel by itself, without bias."""

    def __init__(self, channels: int) -> None:
        """Make the weights."""
        super().__init__(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch names it so
        """Filter `input` `(B, H, W, C)`."""
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ChannelAttention(nn.Module):
    """Attention between channels: a (C/heads, C/heads) matrix per head, linear in the number of pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        """Make the projections and one temperature per head."""
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(channels, 3 * channels)
        self.qkv_dwconv = Depthwise(3 * channels)
        self.project_out = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of `x` `(B, H, W, C)`."""
        B, H, W, C = x.shape
        qkv = self.qkv_dwconv(self.qkv(x)).reshape(B, H * W, 3 * C)
        q, k, v = qkv.split(C, dim=-1)  # 3 x (B, P, C), P = H*W, views of rows of 3C
        attention = self._scores(q, k).softmax(dim=-1)  # (B, heads, C/heads, C/heads)
        # Attention, then projection, is one matrix per image: (C, C) products in place of (P, C) ones.
        out = self.project_out.weight.reshape(C, self.heads, C // self.heads).to(attention.dtype)
        matrix = torch.einsum("ohi,bhij->bohj", out, attention).reshape(B, C, C)
        return (v @ matrix.transpose(-2, -1).to(v.dtype)).reshape(B, H, W, C)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Give the cosines between the channels of `q` and `k` `(B, P, C)` over all pixels, `(B, heads, c, c)`.

        Products first and norms after, so that neither q nor k is written again; head by head, since a view of both
        batch and heads would have to be copied.
        """
        if q.dtype == torch.float16:
            # A sum of 50,000 products exceeds half precision.
            q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        pairs = zip(q.chunk(self.heads, dim=-1), k.chunk(self.heads, dim=-1), strict=True)
        products = torch.stack([one.transpose(-2, -1) @ other for one, other in pairs], dim=1)
        norms = (t.float().square().sum(dim=1).clamp_min(NORM_EPSILON**2).sqrt() for t in (q, k))
        rows, columns = (norm.reshape(norm.shape[0], self.heads, -1) for norm in norms)
        return products.float() * (self.temperature / rows.unsqueeze(-1)) / columns.unsqueeze(-2)


class GatedFeedForward(nn.Module):
    """Feed-forward layer with a depthwise convolution, one half gating the other."""

    def __init__(self, channels: int, expansion: float) -> None:
        """Make the layer with `int(channels * expansion)` hidden channels."""
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = Pointwise(channels, 2 * hidden)
        self.dwconv = Depthwise(2 * hidden)
        self.project_out = Pointwise(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` `(B, H, W, C)`."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=-1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """Channel attention, then gated feed-forward, each with a residual around its norm."""

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        """Make one block."""
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = ChannelAttention(channels, heads)
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedFeedForward(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` `(B, H, W, C)`."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Downsample(nn.Module):
    """Halve the size, double the channels: (B, C, H, W) -> (B, 2C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        """Make the convolution to half the channels; unshuffling multiplies them by four."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels // 2, kernel_size=3, padding=1, bias=False), nn.PixelUnshuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Halve the size of `x` `(B, C, H, W)`."""
        return self.body(x)


class Upsample(nn.Module):
    """Double the size, halve the channels: (B, C, H, W) -> (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        """Make the convolution to twice the channels; shuffling divides them by four."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1, bias=False), nn.PixelShuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Double the size of `x` `(B, C, H, W)`."""
        return self.body(x)


class PatchEmbed(nn.Module):
    """Bring the input slices to the network's channels: (B, S, H, W) -> (B, C, H, W)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        """Make the convolution."""
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed `x` `(B, S, H, W)`."""
        return self.proj(x)
