"""Resample a volume onto another image's grid, by cubic interpolation in world space."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.common.cores import num_cores
from upfield.common.errors import VolumeError
from upfield.imaging.header import read_header
from upfield.imaging.placement import Placement, placement_of
from upfield.imaging.resample import ORDER, apply_operators, grid_operator

# Two grids are parallel if their axes deviate by less than this over their whole length.
PARALLEL_VOX = 1e-3
PROBES = 64


@dataclass(frozen=True)
class Grid:
    """The voxel grid of another image."""

    name: str
    """File name of the image, without its folder."""
    shape: tuple[int, int, int]
    """Voxels along each axis."""
    placement: Placement
    """Position of the voxels."""


def read_grid(path: Path) -> Grid:
    """Read the grid of an image, or of each volume of a series, from its header.

    Raises:
        VolumeError: the image is unreadable, has fewer than 3 dimensions, or has no usable position (sform or qform).
    """
    header = read_header(path)
    placement = placement_of(header)
    if len(header.shape) < 3:
        raise VolumeError(
            str(path),
            f"like: expected at least 3 dimensions, found {len(header.shape)} (shape {header.shape}). "
            "Choose another image.",
        )
    affine = placement.affine
    if not placement.is_placed or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(
            str(path),
            "like: the header has no usable position (sform or qform). Choose another image.",
        )
    first, second, third = header.shape[:3]
    return Grid(path.name, (first, second, third), placement)


def overlaps(shape: tuple[int, ...], affine: NDArray[np.float64], grid: Grid) -> bool:
    """Return whether a grid has voxels in the field of view of a volume of `shape` with `affine` `(4, 4)`."""
    to_index = np.linalg.inv(affine) @ grid.placement.affine
    probes = [np.linspace(0, size - 1, min(size, PROBES)) for size in grid.shape]
    index = _indices(to_index, *probes)
    return bool(_inside(index, shape).any())


def regrid(voxels: NDArray[np.float32], affine: NDArray[np.float64], grid: Grid) -> NDArray[np.float32]:
    """Interpolate a volume at the voxels of another grid. The result is 0 outside the volume's field of view.

    Args:
        voxels: `(I, J, K)`.
        affine: `(4, 4)`, voxel index -> world mm.
        grid: target grid, in the same world space.

    Returns:
        Voxels `grid.shape` float32.
    """
    to_index = np.linalg.inv(affine) @ grid.placement.affine
    axes = _parallel_axes(to_index, grid.shape)
    return _along_axes(voxels, to_index, grid.shape, axes) if axes else _obliquely(voxels, to_index, grid.shape)


def _parallel_axes(to_index: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return, for each axis of the volume, the parallel axis of the grid, or None if the grids are not parallel."""
    travel = np.abs(to_index[:3, :3]) * shape
    axes = tuple(int(axis) for axis in np.abs(to_index[:3, :3]).argmax(axis=1))
    rest = travel.copy()
    rest[np.arange(3), axes] = 0
    return axes if len(set(axes)) == 3 and rest.max() < PARALLEL_VOX else None


def _along_axes(
    voxels: NDArray[np.float32], to_index: NDArray[np.float64], shape: tuple[int, ...], axes: tuple[int, ...]
) -> NDArray[np.float32]:
    operators = [
        grid_operator(
            voxels.shape[own], shape[axis], round(float(to_index[own, axis]), 9), round(float(to_index[own, 3]), 6)
        )
        for own, axis in enumerate(axes)
    ]
    return np.ascontiguousarray(apply_operators(voxels, operators).transpose(np.argsort(axes)))


def _obliquely(
    voxels: NDArray[np.float32], to_index: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    single: Any = np.float32  # scipy's type stubs accept float64 only.
    splines = np.asarray(ndimage.spline_filter(voxels, order=ORDER, output=single, mode="mirror"))
    result = np.zeros(shape, dtype=np.float32)
    second, third = (np.arange(size, dtype=np.float64) for size in shape[1:])
    last = np.array(voxels.shape)[:, None] - 1.0

    def fill(plane: int) -> None:
        index = _indices(to_index, np.array([float(plane)]), second, third)
        inside = _inside(index, voxels.shape)
        if inside.any():
            # A voxel has an extent, so the border value is used up to half a voxel outside the volume.
            places = np.clip(index[:, inside], 0, last)
            result[plane][inside[0]] = ndimage.map_coordinates(
                splines, places, order=ORDER, mode="mirror", prefilter=False, output=single
            )

    # scipy releases the GIL while it interpolates.
    with ThreadPoolExecutor(num_cores()) as threads:
        list(threads.map(fill, range(shape[0])))
    return result


def _indices(to_index: NDArray[np.float64], *places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the volume's voxel index `(3, A, B, C)` at each combination of positions along the axes of a grid."""
    first, second, third = np.meshgrid(*places, indexing="ij", sparse=True)
    rows = [row[0] * first + row[1] * second + row[2] * third + row[3] for row in to_index[:3]]
    return np.stack(rows)


def _inside(index: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    ends = np.array(shape, dtype=np.float64)[:, None, None, None] - 0.5
    return np.asarray(((index >= -0.5) & (index <= ends)).all(axis=0))
