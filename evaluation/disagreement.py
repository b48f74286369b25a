"""Where the model is not sure of itself: its answers to inputs that ought to make no difference.

The input is mirrored, moved by half a voxel, and given faint noise; what comes out is put back and compared. A model
that follows its input gives the same image each time. Structure that comes and goes was not in the scan.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SHIFT_VOX = 0.5
NOISE_STD = 0.01
Restore = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def answers(low: NDArray[np.float32], restore: Restore, seed: int) -> Iterator[NDArray[np.float32]]:
    """Give what the model makes of each perturbed input, moved back to where the input was.

    Args:
        low: `(N, 1 + 2*context, Y, Z)` in [0, 1].
        restore: the model, `(N, 1 + 2*context, Y, Z)` to `(N, Y, Z)`.
        seed: of the noise.

    Yields:
        `(N, Y, Z)` in [0, 1], once for the mirror, the shift and the noise.
    """
    # Neighbouring slices change places too, as they do in a mirrored head; front and back of it as well.
    yield restore(low[:, ::-1, ::-1].copy())[:, ::-1]
    moved = shift(low, SHIFT_VOX)
    yield shift(restore(moved), -SHIFT_VOX)
    noise = np.random.default_rng(seed).standard_normal(low.shape, dtype=np.float32)
    yield restore(np.clip(low + np.float32(NOISE_STD) * noise, 0, 1))


def shift(images: NDArray[np.float32], distance_vox: float) -> NDArray[np.float32]:
    """Move `(..., Y, Z)` along both last axes by a part of a voxel, by cubic interpolation, clipped to [0, 1]."""
    distances = [0.0] * (images.ndim - 2) + [distance_vox] * 2
    return np.clip(ndimage.shift(images, distances, order=3, mode="nearest"), 0, 1)


def disagreement(
    low: NDArray[np.float32], restored: NDArray[np.float32], restore: Restore, seed: int
) -> NDArray[np.float32]:
    """Give the standard deviation of the model's answers, per voxel.

    Args:
        low: `(N, 1 + 2*context, Y, Z)` in [0, 1].
        restored: `(N, Y, Z)`: the answer to `low` itself, one of the four.
        restore: the model.
        seed: of the noise.

    Returns:
        `(N, Y, Z)`, intensities in [0, 1].
    """
    # Welford's sums: the difference of two large ones would leave nothing of a small deviation in single precision.
    mean, squares = restored.astype(np.float32), np.zeros_like(restored, dtype=np.float32)
    for count, answer in enumerate(answers(low, restore, seed), start=2):
        difference = answer - mean
        mean += difference / count
        squares += difference * (answer - mean)
    return np.sqrt(squares / count)
