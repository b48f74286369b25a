"""The memory that a training step keeps for the gradient, and the activation checkpointing that makes it fit."""

import math

from upfield.model.amir import SIZE_MULTIPLE, AmirConfig, Checkpointing
from upfield.model.blocks import ROW_MULTIPLE, next_multiple

# Share of a GPU's memory for activations. Weights, optimizer and a layer's own workspace take the rest.
USABLE = 0.8


def choose_checkpointing(
    config: AmirConfig, size: tuple[int, int], batch: int, value_bytes: int, memory_bytes: int
) -> Checkpointing:
    """Choose the least activation checkpointing that fits a GPU's memory.

    Args:
        config: the network's sizes.
        size: height and width of the slices, in pixels.
        batch: slices per process.
        value_bytes: 2 in mixed precision, 4 in float32.
        memory_bytes: the GPU's memory available to this process.
    """
    for checkpointing in ("none", "selective"):
        if activation_bytes(config, size, batch, value_bytes, checkpointing) < USABLE * memory_bytes:
            return checkpointing
    return "full"


def activation_bytes(
    config: AmirConfig, size: tuple[int, int], batch: int, value_bytes: int, checkpointing: Checkpointing
) -> int:
    """Estimate the bytes that a training step keeps for the gradient, to about a tenth.

    Args:
        config: the network's sizes.
        size: height and width of the slices, in pixels.
        batch: slices per process.
        value_bytes: 2 in mixed precision, 4 in float32.
        checkpointing: what the step computes again instead of keeping it.
    """
    encoders = [(config.dim << level, count, level) for level, count in enumerate(config.num_blocks)]
    decoders = [(2 * config.dim, config.num_blocks[0] + config.num_refinement_blocks, 0), *encoders[1:3]]
    values = 0.0
    for channels, count, level in encoders + decoders:
        values += count * _block_values(channels, config.ffn_expansion, checkpointing) / 4**level
    for channels, _, level in encoders[:3]:
        hidden = int(channels * config.ffn_expansion)
        # Per expert: two hidden activations, its output and a float32 copy. Then pixels, mixture and skip in float32.
        values += (config.num_experts * (2 * hidden + 3 * channels) + 6 * channels) / 4**level
    pixels = math.prod(next_multiple(length, SIZE_MULTIPLE) for length in size)
    return int(value_bytes * batch * pixels * values)


def _block_values(channels: int, expansion: float, checkpointing: Checkpointing) -> int:
    """Return the number of values per pixel that a transformer block keeps."""
    hidden = next_multiple(int(channels * expansion), ROW_MULTIPLE)
    # Inputs and outputs of both norms; queries, keys and values; both hidden halves.
    selective = 7 * channels + 2 * hidden
    # Without checkpointing also the depthwise outputs of q, k, v and both halves, the gate and the product.
    return {"full": channels, "selective": selective, "none": selective + 3 * channels + 4 * hidden}[checkpointing]
