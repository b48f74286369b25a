"""Normalise a volume: clip it to its 1st and 99th percentile, and scale it to [0, 1].

`percentiles` replaces `numpy.percentile`, which takes 0.09 s on the high-field grid. Making all
volumes of a subject takes 0.2 to 0.3 s. On one scan (benchmarks/tables/normalisation.txt), `percentiles`
is 4 times as fast on the high-field grid and 9 times as fast on the low-field grid, and returns the same values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError

PERCENTILES = (1.0, 99.0)
SAMPLE_SIZE = 65536
REMEDY = "If low and high field are in different positions, set align: rigid."
NORMALISATION = "clip to percentiles 1 and 99 of the volume, scale to 0..1"


def normalise_in_place(voxels: NDArray[np.float32], where: str) -> NDArray[np.float16]:
    """Clip a volume to its own 1st and 99th percentile, scale it to [0, 1], and return a copy in half precision.

    Args:
        voxels: `(I, J, K)` in any unit, overwritten with values in [0, 1].
        where: name of the volume in error messages.

    Returns:
        `(I, J, K)` float16 in [0, 1].

    Raises:
        VolumeError: the two percentiles are equal.
    """
    return scale_in_place(voxels, *intensity_range(voxels, where))


def intensity_range(voxels: NDArray[np.float32], where: str, remedy: str = REMEDY) -> tuple[float, float]:
    """Return percentiles 1 and 99 of a volume.

    Args:
        voxels: `(I, J, K)` in any unit.
        where: name of the volume in error messages.
        remedy: what to do if the two are equal, a sentence.

    Raises:
        VolumeError: the two percentiles are equal.
    """
    low, high = percentiles(voxels, PERCENTILES)
    if not high > low:
        raise VolumeError(
            where,
            f"percentiles 1 and 99 are both {low:zg}, so the volume is nearly constant within the grid. {remedy}",
        )
    return low, high


def scale_in_place(voxels: NDArray[np.float32], low: float, high: float) -> NDArray[np.float16]:
    """Clip a volume to a range, scale this range to [0, 1], and return a copy in half precision.

    Args:
        voxels: `(I, J, K)` in any unit, overwritten with values in [0, 1].
        low: the value that becomes 0.
        high: the value that becomes 1.

    Returns:
        `(I, J, K)` float16 in [0, 1].
    """
    half = np.empty(voxels.shape, dtype=np.float16)
    # Four passes over a plane that stays in the cache take less time than one pass over the whole volume.
    for plane, half_plane in zip(voxels, half, strict=True):
        np.clip(plane, np.float32(low), np.float32(high), out=plane)
        plane -= np.float32(low)
        plane *= np.float32(1 / (high - low))
        half_plane[...] = np.minimum(plane, np.float32(1), out=plane)
    return half


def percentiles(voxels: NDArray[np.float32], shares: Sequence[float]) -> list[float]:
    """Compute percentiles as `numpy.percentile` does, with linear interpolation between neighbours.

    Percentiles far from the median take less time than with numpy. A sorted sample of the voxels gives a bound for each
    percentile, and only the few voxels beyond this bound are sorted. The sample affects the time, never the result.

    Args:
        voxels: `(I, J, K)`.
        shares: percentiles to compute, in percent.
    """
    flat = voxels.reshape(-1)
    sample = np.sort(flat[:: max(flat.size // SAMPLE_SIZE, 1) | 1])
    return [
        _low_percentile(flat, share, sample) if share <= 50 else -_low_percentile(-flat, 100 - share, -sample[::-1])
        for share in shares
    ]


def _low_percentile(flat: NDArray[np.float32], share: float, sample: NDArray[np.float32]) -> float:
    rank = share / 100 * (flat.size - 1)
    first = int(rank)
    part = share / 100
    # The margin is six standard deviations of the sampling error, so it is hardly ever necessary to sort all voxels.
    bound = part + 6 * np.sqrt(part * (1 - part) / sample.size) + 2 / sample.size
    candidates = flat[flat <= sample[min(int(bound * sample.size), sample.size - 1)]]
    if candidates.size < first + 2:
        candidates = flat
    last = min(first + 1, flat.size - 1)
    below, above = np.partition(candidates, (first, last))[[first, last]].astype(np.float64)
    return float(below + (above - below) * (rank - first))
