"""AMIR, the all-in-one restoration transformer with task-adaptive routing (Yang et al., MICCAI 2024, arXiv 2405.19769).

The network has the parameter names of the published network and returns the same values. It extends the published
network in two ways: slices of any size are padded to a multiple of 8 and cropped back, and the input may hold
neighbouring slices as channels. Two steps are computed differently, with the same result: experts are mixed by a
log-sum-exp (routing.py), and attention and its projection are combined into one matrix (blocks.py).
"""

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from upfield.model.blocks import (
    ChannelAttention,
    ChannelNorm,
    Downsample,
    GatedFeedForward,
    PatchEmbed,
    TransformerBlock,
    Upsample,
    checkpointed,
    next_multiple,
)
from upfield.model.configuration import AmirConfig, Checkpointing, Kernels
from upfield.model.kernels.selection import choose_kernels
from upfield.model.routing import ChannelRouting, InstructionNetwork, SpatialRouting, load_loss

__all__ = ["MIN_SIZE", "SIZE_MULTIPLE", "Amir", "AmirConfig", "Checkpointing", "noise_shapes", "pad_to_multiple"]

SIZE_MULTIPLE = 8
MIN_SIZE = 9  # The instruction network downsamples by 9, and reflection can pad 9 pixels to 16.


class BlockStack(nn.Sequential):
    """Transformer blocks in sequence. With `recompute`, the backward pass recomputes each block's inner tensors."""

    recompute = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch names it so
        """Transform `input` `(B, C, H, W)`, channels-last in memory, without changing its shape or memory format."""
        x = input.permute(0, 2, 3, 1)  # (B, H, W, C), a view
        for block in self:
            x = checkpointed(block, x, enabled=self.recompute)
        return x.permute(0, 3, 1, 2)


class Amir(nn.Module):
    """A U-shaped transformer with four levels, spatial routing in the encoder and channel routing in the decoder."""

    def __init__(self, config: AmirConfig | None = None) -> None:
        """Build the network with random weights.

        Args:
            config: sizes of the network; None means the published sizes.
        """
        super().__init__()
        self.config = config = config or AmirConfig()
        # The load loss is not linear in the batch, so a data-parallel run replaces this by a sum over the processes.
        self.sum_usage: Callable[[Tensor], Tensor] = lambda usage: usage
        widths = [config.dim << level for level in range(4)]
        blocks, heads = config.num_blocks, config.heads

        def stack(channels: int, num_heads: int, num_blocks: int) -> BlockStack:
            return BlockStack(*(TransformerBlock(channels, num_heads, config.ffn_expansion) for _ in range(num_blocks)))

        def spatial(channels: int) -> SpatialRouting:
            return SpatialRouting(channels, config.num_experts, config.ffn_expansion)

        self.patch_embed = PatchEmbed(config.in_channels, widths[0])
        self.dict_generator = InstructionNetwork(config.in_channels, config.num_tokens)

        self.spatial_routing_encoder_level1 = spatial(widths[0])
        self.encoder_level1 = stack(widths[0], heads[0], blocks[0])
        self.down1_2 = Downsample(widths[0])
        self.spatial_routing_encoder_level2 = spatial(widths[1])
        self.encoder_level2 = stack(widths[1], heads[1], blocks[1])
        self.down2_3 = Downsample(widths[1])
        self.spatial_routing_encoder_level3 = spatial(widths[2])
        self.encoder_level3 = stack(widths[2], heads[2], blocks[2])
        self.down3_4 = Downsample(widths[2])

        self.channel_routing_latent = ChannelRouting(widths[3])
        self.latent = stack(widths[3], heads[3], blocks[3])

        self.up4_3 = Upsample(widths[3])
        self.reduce_chan_level3 = nn.Conv2d(widths[3], widths[2], kernel_size=1, bias=False)
        self.channel_routing_decoder_level3 = ChannelRouting(widths[2])
        self.decoder_level3 = stack(widths[2], heads[2], blocks[2])
        self.up3_2 = Upsample(widths[2])
        self.reduce_chan_level2 = nn.Conv2d(widths[2], widths[1], kernel_size=1, bias=False)
        self.channel_routing_decoder_level2 = ChannelRouting(widths[1])
        self.decoder_level2 = stack(widths[1], heads[1], blocks[1])
        self.up2_1 = Upsample(widths[1])
        # The concatenation at level 1 is not reduced, so the decoder has 2C channels there, with the heads of level 1.
        self.channel_routing_decoder_level1 = ChannelRouting(widths[1])
        self.decoder_level1 = stack(widths[1], heads[0], blocks[0])
        self.refinement = stack(widths[1], heads[0], config.num_refinement_blocks)
        self.output = nn.Conv2d(widths[1], config.out_channels, kernel_size=3, padding=1, bias=False)

    def set_checkpointing(self, checkpointing: Checkpointing) -> None:
        """Choose the activations that the backward pass recomputes instead of keeping them in memory.

        Args:
            checkpointing: `none` recomputes nothing. `selective` recomputes everything after the 1x1 convolutions of
                each block, which halves the memory and costs one more pass of the depthwise convolutions. `full`
                recomputes whole blocks, which needs a ninth of the memory and a third more time.

        Raises:
            ValueError: `checkpointing` is none of these names.
        """
        if checkpointing not in get_args(Checkpointing):
            raise ValueError(f"checkpointing: expected one of {get_args(Checkpointing)}, found {checkpointing!r}.")
        for module in self.modules():
            if isinstance(module, ChannelAttention | GatedFeedForward):
                module.recompute = checkpointing == "selective"
            elif isinstance(module, BlockStack):
                module.recompute = checkpointing == "full"

    def use_kernels(self, kernels: Kernels) -> None:
        """Choose the Triton kernels that the blocks use in place of PyTorch's operators. At first they use none.

        Call this when the network is on the device on which it will run.

        Args:
            kernels: `off` uses no kernel. `on` uses all of them and needs a GPU. `auto` uses those that were shown to
                be right and faster on this kind of GPU, and none on a CPU.

        Raises:
            ValueError: `kernels` is none of these names, or it is `on` and kernels cannot run here.
        """
        chosen = choose_kernels(kernels, next(self.parameters()).device)
        for module in self.modules():
            if isinstance(module, ChannelNorm | ChannelAttention | GatedFeedForward):
                module.fused = module.kernel in chosen

    def compile_blocks(self) -> None:
        """Compile each transformer block with torch.compile at its first call.

        Blocks of the same shape share compiled code, so this takes a tenth of the time that the whole network would
        take.
        """
        # torch compiles kernels for each level, half of the U, mode and batch size. The last batch may be
        # smaller, which adds a batch size.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        # Splitting the graph of a block for data parallelism gains nothing, and some versions of torch then refuse
        # activation checkpointing.
        torch._dynamo.config.optimize_ddp = False
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                module.compile(dynamic=False)

    def forward(self, low: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Restore low-field slices.

        Args:
            low: `(B, in_channels, H, W)` in [0, 1], H and W at least 9. The centre channel is restored.
            noise: for training, one standard normal tensor `(B, pixels, experts)` per encoder level, with the shapes
                that `noise_shapes` returns. If it is None, the noise is drawn from torch's global generator. It is
                ignored in evaluation mode.

        Returns:
            The restored slices `(B, 1, H, W)`, not clipped. In training mode, also the load loss, a scalar.

        Raises:
            ValueError: the slices are smaller than 9 x 9 pixels.
        """
        H, W = low.shape[-2:]
        if min(H, W) < MIN_SIZE:
            raise ValueError(f"expected slices of at least {MIN_SIZE} x {MIN_SIZE} pixels, found {H} x {W}.")
        if not self.training:
            noise = None
        elif noise is None:
            noise = [torch.randn(len(low), *shape, device=low.device) for shape in noise_shapes(self.config, H, W)]
        low = pad_to_multiple(low)
        instruction = self.dict_generator(low)
        # The blocks and the routing work on channels-last memory.
        embedded = self.patch_embed(low).contiguous(memory_format=torch.channels_last)
        latent, skips, usages = self._encode(embedded, instruction, noise)
        residual = self.output(self._decode(latent, skips, instruction))
        centre = self.config.in_channels // 2
        restored = (residual + low[:, centre : centre + 1])[..., :H, :W]
        if not usages:
            return restored
        return restored, load_loss(self.sum_usage(torch.stack(usages)))

    def _encode(
        self, x: Tensor, instruction: Tensor, noise: Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the latent `(B, 8C, H/8, W/8)`, the skips of levels 1 to 3 and, with noise, the expert usage."""
        levels = (
            (self.spatial_routing_encoder_level1, self.encoder_level1, self.down1_2),
            (self.spatial_routing_encoder_level2, self.encoder_level2, self.down2_3),
            (self.spatial_routing_encoder_level3, self.encoder_level3, self.down3_4),
        )
        skips: list[Tensor] = []
        usages: list[Tensor] = []
        for (routing, blocks, down), level_noise in zip(levels, noise or (None,) * 3, strict=True):
            x, usage = routing(x, instruction, level_noise)
            if usage is not None:
                usages.append(usage)
            x = blocks(x)
            skips.append(x)
            x = down(x)  # doubles the channels, halves H and W
        x = self.latent(self.channel_routing_latent(x, instruction))
        return x, skips, usages

    def _decode(self, x: Tensor, skips: list[Tensor], instruction: Tensor) -> Tensor:
        """Decode the latent `x` and the skips to features `(B, 2C, H, W)` at full resolution."""
        x = torch.cat([self.up4_3(x), skips[2]], dim=1)  # (B, 8C, H/4, W/4)
        x = self.channel_routing_decoder_level3(self.reduce_chan_level3(x), instruction)
        x = self.decoder_level3(x)  # (B, 4C, H/4, W/4)
        x = torch.cat([self.up3_2(x), skips[1]], dim=1)  # (B, 4C, H/2, W/2)
        x = self.channel_routing_decoder_level2(self.reduce_chan_level2(x), instruction)
        x = self.decoder_level2(x)  # (B, 2C, H/2, W/2)
        x = torch.cat([self.up2_1(x), skips[0]], dim=1)  # (B, 2C, H, W)
        x = self.decoder_level1(self.channel_routing_decoder_level1(x, instruction))
        return self.refinement(x)


def pad_to_multiple(image: Tensor) -> Tensor:
    """Pad `image` `(B, S, H, W)` at its bottom and right by reflection, to multiples of 8 in H and W.

    The function selects by index instead of calling `F.pad`, because padding that depends on a dynamic size cannot be
    exported to ONNX.
    """
    for dim in (-2, -1):
        size = image.shape[dim]
        index = torch.arange(next_multiple(size, SIZE_MULTIPLE), device=image.device)
        image = image.index_select(dim, torch.where(index < size, index, 2 * (size - 1) - index))
    return image


def noise_shapes(config: AmirConfig, height: int, width: int) -> list[tuple[int, int]]:
    """Return, per encoder level, the shape (pixels, experts) of the gating noise of one `(height, width)` slice."""
    padded_height, padded_width = (next_multiple(size, SIZE_MULTIPLE) for size in (height, width))
    return [((padded_height >> level) * (padded_width >> level), config.num_experts) for level in range(3)]
