"""Cubic resampling as one small matrix per axis.

Spline interpolation on a grid is linear in the voxels and separable, so an operator of scipy.ndimage is known as soon
as it is known on unit vectors. Three matrix products then replace the per-voxel spline evaluation.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

ORDER = 3
Matrix = NDArray[np.float32]


@lru_cache(maxsize=64)
def zoom_matrix(num_in: int, num_out: int) -> Matrix:
    """Give `scipy.ndimage.zoom(order=3)` along one axis as a matrix `(num_out, num_in)`; end voxels stay put."""
    columns = [np.asarray(ndimage.zoom(unit, num_out / num_in, order=ORDER)) for unit in np.eye(num_in)]
    return np.stack(columns, axis=1).astype(np.float32)


@lru_cache(maxsize=256)
def grid_matrix(num_in: int, num_out: int, step: float, start: float) -> Matrix:
    """Give cubic interpolation at the input indices `start + step * i` as a matrix `(num_out, num_in)`.

    Up to half a voxel outside, the border value holds: a voxel has an extent. Farther out lies zero.

    Args:
        num_in: input voxels.
        num_out: output voxels.
        step: output spacing in input voxels.
        start: input index of output voxel 0.
    """
    index = start + step * np.arange(num_out)
    inside = (index >= -0.5) & (index <= num_in - 0.5)
    clamped = np.clip(index, 0, num_in - 1)
    # The same prefilter as zoom's, so that the two agree wherever their sample points do.
    splines = ndimage.spline_filter1d(np.eye(num_in), order=ORDER, axis=1, mode="mirror")
    columns = [ndimage.map_coordinates(row, [clamped], order=ORDER, mode="mirror", prefilter=False) for row in splines]
    return (np.stack(columns, axis=1) * inside[:, None]).astype(np.float32)


def apply_matrices(voxels: NDArray[np.float32], matrices: tuple[Matrix, Matrix, Matrix]) -> NDArray[np.float32]:
    """Apply one matrix per axis.

    Args:
        voxels: `(I, J, K)`.
        matrices: `(I', I)`, `(J', J)`, `(K', K)`.

    Returns:
        `(I', J', K')` float32.
    """
    along_i, along_j, along_k = matrices
    # The axis that shrinks the most goes first: what it drops, the others need not compute.
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    result = voxels
    for axis in order:
        if axis == 0:
            result = (along_i @ result.reshape(result.shape[0], -1)).reshape(-1, *result.shape[1:])
        elif axis == 1:
            result = np.matmul(along_j, result)
        else:
            result = result @ along_k.T
    return np.ascontiguousarray(result)


def zoom_to(voxels: NDArray[np.float32], shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Resample `(I, J, K)` to `shape` as `scipy.ndimage.zoom(order=3)` does, corner voxels on corner voxels."""
    if voxels.shape == shape:
        return voxels
    i, j, k = (zoom_matrix(num_in, num_out) for num_in, num_out in zip(voxels.shape, shape, strict=True))
    return apply_matrices(voxels, (i, j, k))


def resample_box(
    voxels: NDArray[np.float32],
    spacing_mm: NDArray[np.float64],
    centre_vox: NDArray[np.float64],
    shape: tuple[int, int, int],
    new_spacing_mm: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Resample onto a box of its own spacing, cropping or padding with zero, true proportions kept.

    Args:
        voxels: `(I, J, K)`.
        spacing_mm: `(3,)`, their spacing.
        centre_vox: `(3,)`, the input index that lies at the box's centre.
        shape: the box's voxels `(I', J', K')`.
        new_spacing_mm: `(3,)`, the box's spacing.

    Returns:
        `(I', J', K')` float32.
    """
    step = new_spacing_mm / spacing_mm
    start = centre_vox - step * (np.array(shape) - 1) / 2
    # Rounded so that equal geometries share a cached matrix: a millionth of a voxel moves nothing.
    i, j, k = (
        grid_matrix(voxels.shape[axis], shape[axis], round(float(step[axis]), 6), round(float(start[axis]), 6))
        for axis in range(3)
    )
    return apply_matrices(voxels, (i, j, k))


def box_centre(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Give the index `(3,)` at the middle of a grid of `shape`."""
    return (np.array(shape, dtype=np.float64) - 1) / 2
