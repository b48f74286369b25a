"""Locate the brain roughly in a coarse high-field volume of any contrast.

The region decides where the signal follows the curve of the brain, and where the mixture is fitted. It may be inexact.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.imaging.head_mask import connected_parts

# Voxels this deep below the surface of the head, and not farther below its top, are mostly brain.
DEEP_MM = 22.0
DEEP_HEIGHT_MM = 105.0
# The brain lies below the scalp, not farther below the top of the head than this, and is this large.
LEAST_SCALP_MM = 5.0
BRAIN_HEIGHT_MM = 140.0
LITRES = (0.8, 2.6)
SURFACE_MM = 6.0
# Radii of the steps that find it, in voxels of about 4 mm.
OPENING_VOX = 2
CLOSING_VOX = 4
BALL = (ndimage.generate_binary_structure(3, 1), ndimage.generate_binary_structure(3, 2))
# Deep tissue near the brain follows its curve fully below the second depth, and not at all above the first.
SHELL_MM = (14.0, 30.0)
BLEND_VOX = 1.0
# How near to the brain deep tissue must be. A Gaussian of the brain is 0.5 at its border and 0.16 one width outside.
NEAR_VOX = 4.0
NEAR_GAIN = 4.0


def deep_region(depth_mm: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the voxels `(I, J, K)` that are mostly brain, by their depth `(I, J, K)` alone."""
    return (depth_mm > DEEP_MM) & _near_top(depth_mm, float(spacing_mm[2]), DEEP_HEIGHT_MM)


def find_brain(
    bright: NDArray[np.bool_], depth_mm: NDArray[np.float32], spacing_mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Find the brain: the largest part of what is not dark below the scalp, after an opening and a closing.

    Args:
        bright: `(I, J, K)`, voxels that are brighter than bone and air, if possible with the fluid.
        depth_mm: `(I, J, K)`, depth below the surface.
        spacing_mm: `(3,)`, voxel size, about 4 mm.

    Returns:
        `(I, J, K)` bool, with sulci and ventricles; all False if nothing has the size of a brain.
    """
    tissue = bright & (depth_mm > LEAST_SCALP_MM) & _near_top(depth_mm, float(spacing_mm[2]), BRAIN_HEIGHT_MM)
    parts, sizes = connected_parts(_shrink(tissue, OPENING_VOX))
    # The volume is padded, because closing would otherwise stop at its border.
    core = np.pad(parts == sizes.argmax(), CLOSING_VOX)
    brain = _shrink(_grow(core, OPENING_VOX + CLOSING_VOX), CLOSING_VOX)[(slice(CLOSING_VOX, -CLOSING_VOX),) * 3]
    litres = float(brain.sum()) * float(np.prod(spacing_mm)) / 1e6
    return brain if sizes.max() > 0 and LITRES[0] <= litres <= LITRES[1] else np.zeros_like(brain)


def inner_brain(brain: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the brain `(I, J, K)` without its surface, which may hold bone; all of it if nothing else is left."""
    inner = _shrink(brain, round(SURFACE_MM / float(spacing_mm.max())))
    return inner if inner.any() else brain


def brain_share(brain: NDArray[np.bool_], depth_mm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much of each voxel follows the curve of the brain: 1 in the brain, 0 in the scalp.

    The share is smooth, because an edge in it would show in the signal. Deep tissue near the brain follows it too,
    because a wrong border would do more harm at the base of the skull than a wrong contrast does.

    Args:
        brain: `(I, J, K)`, from `find_brain`.
        depth_mm: `(I, J, K)`, depth below the surface.
    """
    deep = np.clip((depth_mm - SHELL_MM[0]) / (SHELL_MM[1] - SHELL_MM[0]), 0, 1)
    if brain.any():
        deep *= np.clip(NEAR_GAIN * ndimage.gaussian_filter(brain.astype(np.float32), NEAR_VOX), 0, 1)
    return np.asarray(ndimage.gaussian_filter(np.maximum(brain, deep), BLEND_VOX), dtype=np.float32)


def _near_top(depth_mm: NDArray[np.float32], spacing_mm: float, height_mm: float) -> NDArray[np.bool_]:
    """Return the planes `(1, 1, K)` that are not farther below the top of the head than `height_mm`."""
    planes = np.flatnonzero((depth_mm > 0).any(axis=(0, 1)))
    top = planes[-1] if planes.size else depth_mm.shape[2]
    return (np.arange(depth_mm.shape[2]) >= top - height_mm / spacing_mm)[None, None]


def _grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate a mask `(I, J, K)` by about a ball: octahedra and cubes in turn."""
    for step in range(radius):
        mask = np.asarray(ndimage.binary_dilation(mask, BALL[step % 2]), dtype=np.bool_)
    return mask


def _shrink(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Erode a mask `(I, J, K)` by about a ball; beyond its border, there is nothing."""
    for step in range(radius):
        mask = np.asarray(ndimage.binary_erosion(mask, BALL[step % 2]), dtype=np.bool_)
    return mask
