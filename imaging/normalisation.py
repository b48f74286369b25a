"""Intensities: the normalisation of every volume, and the synthetic low field."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError

PERCENTILES = (1.0, 99.0)
SAMPLE_SIZE = 65536
NORMALISATION = "clip to percentiles 1 and 99 of the volume, scale to 0..1"


def normalise(voxels: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """Clip a volume to its own 1st and 99th percentile and scale it to [0, 1].

    Args:
        voxels: `(I, J, K)` in any unit.
        where: what to call the volume in errors.

    Returns:
        `(I, J, K)` float32 in [0, 1].

    Raises:
        VolumeError: the two percentiles are equal, so that nothing is left to scale.
    """
    scaled = voxels.copy()
    normalise_in_place(scaled, where)
    return scaled


def normalise_in_place(voxels: NDArray[np.float32], where: str) -> NDArray[np.float16]:
    """Normalise a volume as `normalise` does, in its own memory, and give a copy in half precision.

    Args:
        voxels: `(I, J, K)` in any unit, overwritten with [0, 1].
        where: what to call the volume in errors.

    Returns:
        `(I, J, K)` float16 in [0, 1].

    Raises:
        VolumeError: the two percentiles are equal, so that nothing is left to scale.
    """
    low, high = percentiles(voxels, PERCENTILES)
    if not high > low:
        raise VolumeError(
            where,
            f"expected percentiles 1 and 99 to differ, found {low:g} for both; the volume is nearly constant, "
            "or what the grid holds of it is: too little, or a low field that lies elsewhere (align: rigid)",
        )
    half = np.empty(voxels.shape, dtype=np.float16)
    # Plane by plane: four steps over what is in the cache cost less than one over the whole volume.
    for plane, half_plane in zip(voxels, half, strict=True):
        np.clip(plane, np.float32(low), np.float32(high), out=plane)
        plane -= np.float32(low)
        plane *= np.float32(1 / (high - low))
        half_plane[...] = np.minimum(plane, np.float32(1), out=plane)
    return half


def percentiles(voxels: NDArray[np.float32], shares: Sequence[float]) -> list[float]:
    """Give what `numpy.percentile` gives, linear between neighbours, for shares far from the middle, in less time.

    A sample tells where a share lies at most; what lies beyond that is a small part of the volume, and sorting it
    suffices. The sample decides how long it takes, never the result.

    Args:
        voxels: `(I, J, K)`.
        shares: in percent.
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
    # Six standard deviations of the sample's own error, so that it hardly ever has to be done again over all.
    bound = part + 6 * np.sqrt(part * (1 - part) / sample.size) + 2 / sample.size
    candidates = flat[flat <= sample[min(int(bound * sample.size), sample.size - 1)]]
    if candidates.size < first + 2:
        candidates = flat
    last = min(first + 1, flat.size - 1)
    below, above = np.partition(candidates, (first, last))[[first, last]].astype(np.float64)
    return float(below + (above - below) * (rank - first))
