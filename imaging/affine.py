"""Geometry of affines: angles between axes, voxel sizes, and the affine of a file that states no position."""

from collections.abc import Sequence

import numpy as np
from nibabel.orientations import axcodes2ornt
from numpy.typing import NDArray


def angles_deg(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the angle between each column of `first` `(3, N)` and that of `second` `(3, N)`.

    Returns:
        Angles in degrees, `(N,)`; NaN for columns of length 0.
    """
    lengths = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.sum(np.asarray(first, np.float64) * second, axis=0) / lengths
    return np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))


def spacing_of(affine: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the voxel sizes `(3,)` from an affine `(4, 4)` or its upper left part `(3, 3)`."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def size_text(size_mm: NDArray[np.floating]) -> str:
    """Return sizes along three axes `(3,)` as text, such as `1.6 x 1.6 x 5 mm`."""
    return " x ".join(f"{mm:.4g}" for mm in size_mm) + " mm"


def assumed_affine(shape: Sequence[int], spacing_mm: NDArray[np.floating], orientation: str) -> NDArray[np.float64]:
    """Build an affine, with the centre at the origin, for a volume whose file does not state its position.

    Args:
        shape: voxels per dimension.
        spacing_mm: `(3,)`, voxel size along each axis.
        orientation: axis codes, such as `RAS`.

    Returns:
        `(4, 4)`, voxel index -> world mm.
    """
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(orientation)):
        affine[int(world), axis] = sign * spacing_mm[axis]
    sizes = np.array([*shape, 1, 1, 1][:3])
    affine[:3, 3] = -affine[:3, :3] @ (sizes - 1) / 2
    return affine
