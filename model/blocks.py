"""The Restormer block (Zamir et al., CVPR 2022, arXiv 2111.09881) and the changes of resolution.

Module and parameter names are those of the published AMIR checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        """Make scale and shift of `channels`."""
        super().__init__()
        self.body = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `(B, C, H, W)`."""
        # A view when x is channels-last in memory, which the network's inputs are.
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelAttention(nn.Module):
    """Attention between channels: a (C/heads, C/heads) matrix per head, linear in the number of pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        """Make the projections and one temperature per head."""
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1, bias=False)
        self.qkv_dwconv = nn.Conv2d(
            3 * channels, 3 * channels, kernel_size=3, padding=1, groups=3 * channels, bias=False
        )
        self.project_out = nn.Conv2d(channels, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of `x` `(B, C, H, W)`."""
        B, C, H, W = x.shape
        qkv = self.qkv_dwconv(self.qkv(x))
        # (B, 3C, H, W) -> 3 x (B, heads, C/heads, H*W)
        q, k, v = qkv.reshape(B, 3, self.heads, C // self.heads, H * W).unbind(1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (scores * self.temperature).softmax(dim=-1) @ v
        return self.project_out(mixed.reshape(B, C, H, W))


class GatedFeedForward(nn.Module):
    """Feed-forward layer with a depthwise convolution, one half gating the other."""

    def __init__(self, channels: int, expansion: float) -> None:
        """Make the layer with `int(channels * expansion)` hidden channels."""
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, kernel_size=1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, kernel_size=3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` `(B, C, H, W)`."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
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
        """Transform `x` `(B, C, H, W)`."""
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
