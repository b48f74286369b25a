"""Recognise label maps, which are numbers of anatomical structures and not images."""

import numpy as np
from numpy.typing import NDArray

# Label maps of whole heads have 53 or 54 values, and parcellations of the cortex up to 1,000. Eight-bit scans have 120
# to 256, but their noise changes the value from voxel to voxel.
FEW_VALUES, MOST_LABELS = 64, 2000
# Share of neighbours with equal values, outside the most frequent value. Measured: 0.80 to 0.88 in label maps, also
# with thick slices, at most 0.23 in scans, and 0.55 in scans whose planes are repeated.
LEAST_FLAT = 0.65
NUM_SAMPLES = 200_000


def label_doubt(voxels: NDArray[np.float32]) -> str | None:
    """Return a doubt if a volume seems to be a label map, otherwise None.

    A label map has few different whole numbers. If it has more than 64, it must also consist of flat regions.

    Args:
        voxels: `(I, J, K)` in scanner units.
    """
    flat = voxels.reshape(-1)
    sample = flat[:: max(flat.size // NUM_SAMPLES, 1) | 1]
    if not (sample == np.rint(sample)).all():
        return None
    values, counts = np.unique(sample, return_counts=True)
    if values.size > MOST_LABELS or (
        values.size > FEW_VALUES and _flat_share(voxels, values[counts.argmax()]) < LEAST_FLAT
    ):
        return None
    return (
        f"the voxels have only {np.unique(voxels).size} different values, all of them whole numbers; check that this "
        "is a scan; a label map belongs under labels: instead of high:"
    )


def _flat_share(voxels: NDArray[np.float32], background: np.float32) -> float:
    """Return the share of neighbours along axis 1 or 2 with equal values other than `background`, the larger one."""
    planes = voxels[:: max(voxels.size // NUM_SAMPLES, 1)]
    shares: list[float] = []
    # Along one of the two, slices may be thick.
    for first, second in ((planes[:, :-1], planes[:, 1:]), (planes[:, :, :-1], planes[:, :, 1:])):
        inside = (first != background) | (second != background)
        shares.append(float(((first == second) & inside).sum() / max(inside.sum(), 1)))
    return max(shares)
