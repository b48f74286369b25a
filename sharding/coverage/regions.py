"""Find the parts of a low-field volume that the audit measures: the head, its inside, and air that was measured."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.imaging.air import estimate_air
from upfield.imaging.head_mask import depth_below_surface, enlarge_mask, head_mask

# Distances are computed on every second voxel.
STRIDE = 2
# Skin, fat and skull are about this thick, so what lies deeper is brain.
DEEP_MM = 16.0
# Below this distance from the top of the head begin face and neck.
BRAIN_HEIGHT_MM = 110.0
# Blur reaches this far from the head into air.
CLEAR_MM = 8.0
# Width of the cube in which the local standard deviation is computed.
LOCAL_MM = 7.0
# Scanners fill the margins of an image with a constant. Local standard deviations that are smaller than this, or than
# this share of what air usually has, come from interpolation beside such a margin and not from noise.
LEAST_STD, LEAST_STD_SHARE = 2e-4, 0.1
LEAST_VOXELS = 500


@dataclass(frozen=True)
class Regions:
    """Parts of a volume `(X, Y, Z)`, each as a mask of the same shape."""

    head: NDArray[np.bool_]
    """The head."""
    deep: NDArray[np.bool_]
    """The inside of the upper part of the head, mostly brain."""
    air: NDArray[np.bool_]
    """Air away from the head, without margins that were filled with a constant."""
    local_std: NDArray[np.float32]
    """Standard deviation in a small cube around each voxel."""


def find_regions(voxels: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> Regions | None:
    """Find the head, its inside, and the air around it.

    Args:
        voxels: `(X, Y, Z)` in [0, 1], RAS+.
        spacing_mm: `(3,)`, voxel size.

    Returns:
        The regions; None if air cannot be told from the head, or if the head has no inside.
    """
    if voxels.min() == voxels.max() or estimate_air(voxels).doubt:
        return None
    head = head_mask(voxels)
    coarse = head[::STRIDE, ::STRIDE, ::STRIDE]
    step_mm = spacing_mm * STRIDE
    deep = depth_below_surface(coarse, step_mm) > DEEP_MM
    heights = np.flatnonzero(coarse.any(axis=(0, 1)))
    deep[:, :, : max(int(heights[-1] - BRAIN_HEIGHT_MM / step_mm[2]), 0)] = False
    clear = _distance_mm(~coarse, step_mm) > CLEAR_MM
    if deep.sum() * STRIDE**3 < LEAST_VOXELS:
        return None
    local_std = standard_deviations(voxels, spacing_mm)
    air = clear & ~_filled(clear, local_std[::STRIDE, ::STRIDE, ::STRIDE], step_mm)
    deep, air = (enlarge_mask(mask, voxels.shape, STRIDE) for mask in (deep, air))
    return Regions(head, deep, air, local_std)


def _filled(
    clear: NDArray[np.bool_], local_std: NDArray[np.float32], step_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return the voxels of air `(X, Y, Z)` that lie in or beside a margin of constant value."""
    usual = local_std[clear & (local_std > LEAST_STD)]
    if not usual.size:
        return clear
    least = max(LEAST_STD, LEAST_STD_SHARE * float(np.percentile(usual, 75)))
    # Single quiet places occur in noise too.
    quiet = np.pad(clear & (local_std < least), 1, mode="edge")
    filled = np.asarray(ndimage.binary_opening(quiet, np.ones((2, 2, 2))), dtype=np.bool_)[1:-1, 1:-1, 1:-1]
    if not filled.any():
        return filled
    return _distance_mm(~filled, step_mm) < CLEAR_MM


def standard_deviations(voxels: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the standard deviation in a cube of 7 mm around each voxel.

    Args:
        voxels: `(X, Y, Z)`.
        spacing_mm: `(3,)`, voxel size.

    Returns:
        `(X, Y, Z)` float32.
    """
    mean, square = (box_mean(each, spacing_mm, LOCAL_MM) for each in (voxels, np.square(voxels)))
    return np.sqrt(np.maximum(square - np.square(mean), 0))


def box_mean(voxels: NDArray[np.float32], spacing_mm: NDArray[np.float64], width_mm: float) -> NDArray[np.float32]:
    """Compute the mean in a cube around each voxel.

    Args:
        voxels: `(X, Y, Z)`.
        spacing_mm: `(3,)`, voxel size.
        width_mm: length of the cube's edges.

    Returns:
        `(X, Y, Z)` float32.
    """
    for axis, mm in enumerate(spacing_mm.tolist()):
        filtered: Any = ndimage.uniform_filter1d(voxels, max(round(width_mm / mm), 1), axis=axis)
        voxels = filtered
    return voxels


def _distance_mm(mask: NDArray[np.bool_], step_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the distance `(X, Y, Z)` of each voxel of a mask from the nearest voxel outside of it."""
    distance: Any = ndimage.distance_transform_edt(mask, sampling=step_mm.tolist())
    return distance
