"""Find slices of a stack that do not seem to belong to it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Resemblance of a slice: Fisher's z of the correlation with the more similar neighbour, minus that of the neighbours
# with each other. Measured: at least 0.12 in all slices of scans at 3 T and 64 mT along all axes, at least -0.07 in
# noisy phantoms of 5 mm slices, and mostly below -0.2 after a slice was exchanged with one of another head.
MIN_RESEMBLANCE = -0.12
# Chance moves the resemblance of small slices by this, divided by the square root of the number of voxels.
CHANCE = 4.0
# Surprise of a slice: log of its squared distance from the mean of its neighbours, relative to slices nearby. Measured:
# at most 0.7 in scans and phantoms, 1 to 2.5 in exchanged slices. Where a head suddenly ends, it is 2, but there, the
# resemblance is that of most slices.
MAX_SURPRISE, MAX_SHARE_OF_USUAL = 0.9, 0.6
# If the neighbours do not resemble each other, a slice between them need not resemble them either.
MIN_CORRELATION = 0.5
# Factor between the contrast of a slice and that of its neighbours. Measured: at most 1.3 in scans, 1.4 in phantoms.
MAX_FACTOR = 1.6
# Slices at the ends of a head have less contrast than this share of the median, and change fast.
MIN_CONTRAST = 0.5
# A shorter stack does not show what is usual.
MIN_SLICES = 8
TINY = np.finfo(np.float32).tiny


def find_foreign_slices(voxels: NDArray[np.float32], axis: int) -> list[int]:
    """Find slices that differ more from their two neighbours than these differ from each other.

    Args:
        voxels: `(I, J, K)`.
        axis: the axis across which the slices lie.

    Returns:
        Indices of the slices along `axis`, ascending. The first and the last slice are never among them.
    """
    slices = np.moveaxis(voxels, axis, 0).reshape(voxels.shape[axis], -1)
    if len(slices) < MIN_SLICES:
        return []
    centred = slices - slices.mean(axis=1, keepdims=True)
    contrast = np.sqrt(np.square(centred).mean(axis=1))
    units = centred / np.maximum(contrast, TINY)[:, None]
    next_one, next_but_one = (np.mean(units[:-step] * units[step:], axis=1) for step in (1, 2))
    before, inner, after = contrast[:-2], contrast[1:-1], contrast[2:]
    inside = (np.minimum(before, after) > MIN_CONTRAST * np.median(contrast)) & (next_but_one > MIN_CORRELATION)
    if not inside.any():
        return []
    resemblance = _fisher(np.maximum(next_one[:-1], next_one[1:])) - _fisher(next_but_one)
    strange = resemblance < MIN_RESEMBLANCE - CHANCE / np.sqrt(slices.shape[1])
    unlike = resemblance < MAX_SHARE_OF_USUAL * np.median(resemblance[inside])
    surprise = _surprise(centred)
    strange |= unlike & (surprise > MAX_SURPRISE) & (surprise == _largest_nearby(surprise))
    # A strange contrast makes the neighbours look strange too, by the square root of its factor.
    off = np.abs(np.log(np.maximum(inner, TINY) / np.sqrt(np.maximum(before * after, TINY))))
    strange |= (off > np.log(MAX_FACTOR)) & (off == _largest_nearby(off))
    return [int(index) + 1 for index in np.flatnonzero(inside & strange)]


def _surprise(centred: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute how far each inner slice is from the mean of its neighbours, relative to slices on both sides.

    Args:
        centred: `(N, voxels)`, slices with a mean of 0.

    Returns:
        `(N - 2,)`, the log of the ratio of squares; minus infinity near the ends of the stack.
    """
    squares = np.square(centred[1:-1] - (centred[:-2] + centred[2:]) / 2).mean(axis=1)
    surprise = np.full(len(squares), -np.inf)
    for index in range(2, len(squares) - 2):
        # The distances of the two neighbours contain half of the slice itself.
        nearby = [squares[max(index - 4, 0) : index - 1], squares[index + 2 : index + 5]]
        surprise[index] = np.log(max(squares[index], TINY) / max(float(np.median(np.concatenate(nearby))), TINY))
    return surprise


def foreign_slices_doubt(foreign: Sequence[int], num_slices: int) -> str:
    """Return a sentence without a full stop about the result of `find_foreign_slices`, which is not empty."""
    which = ", ".join(map(str, foreign[:5])) + (", ..." if foreign[5:] else "")
    verb = "does" if len(foreign) == 1 else "do"
    return (
        f"{len(foreign)} of {num_slices} slices {verb} not fit between the two neighbours (counted from 0: {which}) "
        "and may belong to another scan; look at them, and replace those that do"
    )


def _fisher(correlation: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.arctanh(np.clip(correlation, -0.9999, 0.9999))


def _largest_nearby(values: NDArray[np.floating]) -> NDArray[np.floating]:
    padded = np.pad(values, 1, constant_values=-np.inf)
    return np.maximum(np.maximum(padded[:-2], padded[2:]), values)
