"""The memory that a training step needs for its activations, and the activation checkpointing that makes them fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from upfield.model.amir import SIZE_MULTIPLE, AmirConfig, Checkpointing
from upfield.model.blocks import ROW_MULTIPLE, next_multiple

# Share of a GPU's memory for activations. The weights, the optimizer and the workspace of a layer take the rest.
USABLE = 0.8
# Smallest part of a batch that is worth a pass of its own. In smaller passes, a large GPU waits for the host.
LEAST_SLICES = 4


@dataclass(frozen=True)
class MemoryPlan:
    """How a training step fits its activations into a GPU's memory."""

    checkpointing: Checkpointing
    """Activation checkpointing."""
    micro_batch: int
    """Number of slices per forward pass."""


def plan_memory(
    config: AmirConfig, size: tuple[int, int], batches: Sequence[int], value_bytes: int, memory_bytes: int
) -> MemoryPlan:
    """Choose the activation checkpointing that recomputes least and, for it, the largest batch that fits in memory.

    Args:
        config: sizes of the network.
        size: height and width of the slices, in pixels.
        batches: allowed numbers of slices per forward pass on each process, largest first.
        value_bytes: bytes per value: 2 in mixed precision, 4 in float32.
        memory_bytes: GPU memory in bytes that is available to this process.

    Returns:
        The choice; `full` with the smallest batch if nothing fits.
    """
    plans = [MemoryPlan(checkpointing, batch) for checkpointing in get_args(Checkpointing) for batch in batches]
    for plan in plans:
        needed = activation_bytes(config, size, plan.micro_batch, value_bytes, plan.checkpointing)
        if needed < USABLE * memory_bytes:
            return plan
    return plans[-1]


def equal_parts(batch: int) -> list[int]:
    """Return the sizes of at least `LEAST_SLICES` slices into which a batch can be split evenly, largest first."""
    return [batch, *(batch // n for n in range(2, batch // LEAST_SLICES + 1) if batch % n == 0)]


def activation_bytes(
    config: AmirConfig, size: tuple[int, int], batch: int, value_bytes: int, checkpointing: Checkpointing
) -> int:
    """Estimate the bytes of activations that a training step keeps for the backward pass, to within about a tenth.

    Args:
        config: sizes of the network.
        size: height and width of the slices, in pixels.
        batch: number of slices per forward pass on each process.
        value_bytes: bytes per value: 2 in mixed precision, 4 in float32.
        checkpointing: activation checkpointing of the step.
    """
    encoders = [(config.dim << level, count, level) for level, count in enumerate(config.num_blocks)]
    decoders = [(2 * config.dim, config.num_blocks[0] + config.num_refinement_blocks, 0), *encoders[1:3]]
    values = 0.0
    for channels, count, level in encoders + decoders:
        values += count * _block_values(channels, config.ffn_expansion, checkpointing) / 4**level
    for channels, _, level in encoders[:3]:
        hidden, padded = (next_multiple(n, ROW_MULTIPLE) for n in (int(channels * config.ffn_expansion), channels))
        # Each expert keeps two hidden activations, its output and a float32 copy of the output. The pixels, the mixture
        # and the skip are kept once, in float32.
        values += (config.num_experts * (2 * hidden + 3 * padded) + 6 * channels) / 4**level
    pixels = math.prod(next_multiple(length, SIZE_MULTIPLE) for length in size)
    return int(value_bytes * batch * pixels * values)


def _block_values(channels: int, expansion: float, checkpointing: Checkpointing) -> int:
    """Return the number of values per pixel that a transformer block keeps."""
    hidden, padded = (next_multiple(number, ROW_MULTIPLE) for number in (int(channels * expansion), channels))
    # The block keeps the inputs and outputs of both norms, the queries, keys and values, and both hidden halves.
    selective = 4 * channels + 3 * padded + 2 * hidden
    # Without checkpointing, it also keeps the depthwise outputs of q, k, v and both halves, the gate and the product.
    return {"full": channels, "selective": selective, "none": selective + 3 * padded + 4 * hidden}[checkpointing]
