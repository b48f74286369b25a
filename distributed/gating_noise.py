"""The gating noise of training: a pure function of (seed, step, sample).

The noise depends neither on the number of processes nor on earlier draws, so resuming needs no generator state.
"""

import hashlib

import torch
from torch import Tensor

from upfield.model.amir import AmirConfig, noise_shapes


def draw_gating_noise(
    config: AmirConfig, size: tuple[int, int], key: tuple[int, int], samples: Tensor, device: torch.device
) -> list[Tensor]:
    """Draw the noise of one batch.

    Args:
        config: sizes of the network.
        size: height and width of the slices.
        key: the run's seed and the global step.
        samples: `(B,)` sample numbers.
        device: device on which to draw; CPU and GPU generators return different numbers.

    Returns:
        One standard normal tensor `(B, pixels, experts)` per encoder level.
    """
    shapes = noise_shapes(config, *size)
    generator = torch.Generator(device=device)
    levels: list[list[Tensor]] = [[] for _ in shapes]
    for sample in samples.tolist():
        generator.manual_seed(_seed(*key, sample))
        for level, shape in zip(levels, shapes, strict=True):
            level.append(torch.randn(shape, generator=generator, device=device))
    return [torch.stack(level) for level in levels]


def _seed(*key: int) -> int:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
