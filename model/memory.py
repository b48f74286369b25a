"""The memory that training needs: what is kept for the gradient, and a C library that keeps what it was given back."""

import ctypes
import math
import platform

from upfield.model.amir import SIZE_MULTIPLE, AmirConfig, Checkpointing
from upfield.model.blocks import ROW_MULTIPLE, next_multiple

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
# Of a GPU's memory; weights, optimizer and what a layer needs while it works take the rest.
USABLE = 0.8


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process use freed memory again, instead of giving it back to the system and asking for it anew.

    By default glibc returns every block above 32 MiB when it is freed, and the system clears each page before the next
    layer gets it: at full resolution that took up to half of a CPU's time. No effect where the C library is another.

    Args:
        keep: False restores the limits that glibc arrives at by itself.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if keep:
        # Before glibc 2.35 the threshold had a maximum; to map nothing has the same effect.
        if not libc.mallopt(M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    else:
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        libc.malloc_trim(0)


def choose_checkpointing(
    config: AmirConfig, size: tuple[int, int], batch: int, value_bytes: int, memory_bytes: int
) -> Checkpointing:
    """Give the least activation checkpointing that fits a GPU's memory.

    Args:
        config: the network's sizes.
        size: height and width of the slices, in pixels.
        batch: slices per process.
        value_bytes: 2 in mixed precision, 4 in float32.
        memory_bytes: all that the GPU has.
    """
    for checkpointing in ("none", "selective"):
        if activation_bytes(config, size, batch, value_bytes, checkpointing) < USABLE * memory_bytes:
            return checkpointing
    return "full"


def activation_bytes(
    config: AmirConfig, size: tuple[int, int], batch: int, value_bytes: int, checkpointing: Checkpointing
) -> int:
    """Estimate what a training step keeps for the gradient, to about a tenth; arguments as above."""
    encoders = [(config.dim << level, count, level) for level, count in enumerate(config.num_blocks)]
    decoders = [(2 * config.dim, config.num_blocks[0] + config.num_refinement_blocks, 0), *encoders[1:3]]
    values = 0.0
    for channels, count, level in encoders + decoders:
        values += count * _block_values(channels, config.ffn_expansion, checkpointing) / 4**level
    for channels, _, level in encoders[:3]:
        hidden = int(channels * config.ffn_expansion)
        # Per expert: two hidden layers, its output and that in float32; then pixels, mixture and skip in float32.
        values += (config.num_experts * (2 * hidden + 3 * channels) + 6 * channels) / 4**level
    pixels = math.prod(next_multiple(length, SIZE_MULTIPLE) for length in size)
    return int(value_bytes * batch * pixels * values)


def _block_values(channels: int, expansion: float, checkpointing: Checkpointing) -> int:
    """Give the values per pixel that a transformer block keeps."""
    hidden = next_multiple(int(channels * expansion), ROW_MULTIPLE)
    # Both norms' inputs and outputs, queries, keys and values, both hidden halves.
    selective = 7 * channels + 2 * hidden
    # The same after the depthwise filters, then gate and product.
    return {"full": channels, "selective": selective, "none": selective + 3 * channels + 4 * hidden}[checkpointing]
