"""Measure how much a model disagrees with itself when its input is perturbed in ways that should not matter.

The model restores the input itself, a mirrored copy, a copy moved by half a voxel, and a copy with faint noise. Each
output is moved back, and the four outputs are compared. If the model adds nothing to its input, the outputs are equal.
Structure that only some of the outputs show was not in the scan.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.resample import apply_operators, grid_operator

# Mirrored, moved and noisy.
NUM_COPIES = 3
SHIFT_VOX = 0.5
NOISE_STD = 0.01
Restore = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def restore_perturbed(
    low: NDArray[np.float32], restored: NDArray[np.float32], restore: Restore, seed: int
) -> Iterator[NDArray[np.float32]]:
    """Restore each perturbed copy of the input, and move the output back to the original position.

    Args:
        low: `(N, 1 + 2*context, Y, Z)` in [0, 1].
        restored: `(N, Y, Z)`; the model's output for `low` itself.
        restore: the model, which maps `(N, 1 + 2*context, Y, Z)` to `(N, Y, Z)`.
        seed: seed of the noise.

    Yields:
        `(N, Y, Z)` for the mirrored, the moved and the noisy input, in this order.
    """
    # Mirroring the head also reverses the order of neighbouring slices.
    yield restore(low[:, ::-1, ::-1].copy())[:, ::-1]
    # Only the difference is interpolated back, because interpolating the whole image would blur it.
    difference = restore(shift(low, SHIFT_VOX)) - shift(restored, SHIFT_VOX)
    yield restored + move(difference, -SHIFT_VOX)
    noise = np.random.default_rng(seed).standard_normal(low.shape, dtype=np.float32)
    noise *= np.float32(NOISE_STD)
    yield restore(np.clip(low + noise, 0, 1))


def move(images: NDArray[np.float32], distance_vox: float) -> NDArray[np.float32]:
    """Move `(..., Y, Z)` along the last two axes by at most half a voxel, by cubic interpolation."""
    operators = [None, *(grid_operator(size, size, 1.0, -distance_vox) for size in images.shape[-2:])]
    return apply_operators(images.reshape(-1, *images.shape[-2:]), operators).reshape(images.shape)


def shift(images: NDArray[np.float32], distance_vox: float) -> NDArray[np.float32]:
    """Move images `(..., Y, Z)` in [0, 1], and clip the result, because interpolation can overshoot this range."""
    return np.clip(move(images, distance_vox), 0, 1)


def disagreement(
    low: NDArray[np.float32], restored: NDArray[np.float32], restore: Restore, seed: int
) -> NDArray[np.float32]:
    """Compute the standard deviation of the model's four outputs, per voxel.

    Args:
        low: `(N, 1 + 2*context, Y, Z)` in [0, 1].
        restored: `(N, Y, Z)`; the output for `low` itself, which is one of the four.
        restore: the model, which maps `(N, 1 + 2*context, Y, Z)` to `(N, Y, Z)`.
        seed: seed of the noise.

    Returns:
        `(N, Y, Z)`, intensities in [0, 1].
    """
    # Welford's method, because in single precision the difference of two large sums would lose a small deviation.
    mean, squares, count = restored.astype(np.float32), np.zeros_like(restored, dtype=np.float32), 1
    for output in restore_perturbed(low, restored, restore, seed):
        count += 1
        difference = output - mean
        mean += difference / count
        squares += difference * (output - mean)
    return np.sqrt(squares / count)
