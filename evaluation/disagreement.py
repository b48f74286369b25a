"""Measure how much a model disagrees with itself when its input is perturbed in ways that should not matter.

The input is mirrored, moved by half a voxel, and disturbed by faint noise. Each output is moved back and compared. A
model that follows its input returns the same image each time. Structure that comes and goes was not in the scan.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.resample import apply_operators, grid_operator

SHIFT_VOX = 0.5
NOISE_STD = 0.01
Restore = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def answers(
    low: NDArray[np.float32], restored: NDArray[np.float32], restore: Restore, seed: int
) -> Iterator[NDArray[np.float32]]:
    """Restore each perturbed input, and move the output back to the position of the input.

    Args:
        low: `(N, 1 + 2*context, Y, Z)` in [0, 1].
        restored: `(N, Y, Z)`: the model's output for `low` itself.
        restore: the model, `(N, 1 + 2*context, Y, Z)` to `(N, Y, Z)`.
        seed: seed of the noise.

    Yields:
        `(N, Y, Z)`, once each for the mirrored, the shifted and the noisy input.
    """
    # The order of neighbouring slices is reversed too, as in a mirrored head.
    yield restore(low[:, ::-1, ::-1].copy())[:, ::-1]
    # Only the difference is interpolated back, because interpolating the whole image would blur it.
    difference = restore(shift(low, SHIFT_VOX)) - shift(restored, SHIFT_VOX)
    yield restored + moved(difference, -SHIFT_VOX)
    noise = np.random.default_rng(seed).standard_normal(low.shape, dtype=np.float32)
    noise *= np.float32(NOISE_STD)
    yield restore(np.clip(low + noise, 0, 1))


def moved(images: NDArray[np.float32], distance_vox: float) -> NDArray[np.float32]:
    """Move `(..., Y, Z)` along both last axes by at most half a voxel, by cubic interpolation."""
    operators = [None, *(grid_operator(size, size, 1.0, -distance_vox) for size in images.shape[-2:])]
    return apply_operators(images.reshape(-1, *images.shape[-2:]), operators).reshape(images.shape)


def shift(images: NDArray[np.float32], distance_vox: float) -> NDArray[np.float32]:
    """Move images `(..., Y, Z)` in [0, 1], and clip them to [0, 1], which interpolation may leave."""
    return np.clip(moved(images, distance_vox), 0, 1)


def disagreement(
    low: NDArray[np.float32], restored: NDArray[np.float32], restore: Restore, seed: int
) -> NDArray[np.float32]:
    """Compute the standard deviation of the model's four outputs, per voxel.

    Args:
        low: `(N, 1 + 2*context, Y, Z)` in [0, 1].
        restored: `(N, Y, Z)`: the output for `low` itself, one of the four.
        restore: the model, `(N, 1 + 2*context, Y, Z)` to `(N, Y, Z)`.
        seed: seed of the noise.

    Returns:
        `(N, Y, Z)`, intensities in [0, 1].
    """
    # Welford's method: in single precision, the difference of two large sums would lose a small deviation.
    mean, squares, count = restored.astype(np.float32), np.zeros_like(restored, dtype=np.float32), 1
    for answer in answers(low, restored, restore, seed):
        count += 1
        difference = answer - mean
        mean += difference / count
        squares += difference * (answer - mean)
    return np.sqrt(squares / count)
