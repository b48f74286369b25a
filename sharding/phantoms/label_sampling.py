"""Find the class of each voxel of a grid in a deformed label map, finer than the grid where classes meet."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.phantoms.anatomy import F64, TemplateGrid
from upfield.sharding.phantoms.deformation import Deformation
from upfield.sharding.phantoms.label_map import LabelMap

Classes = NDArray[np.unsignedinteger]

# Places are counted in 64ths of a voxel of the map. 16 bits hold them, except in huge maps.
STEPS = 64
# The samples of a voxel lie in a box of this many voxels, because a scanner's voxels overlap. This also smooths the
# steps of the map.
SPREAD_VOX = 1.5
MAX_SIDE = 2**15 // STEPS - 2


@dataclass(frozen=True)
class Sampling:
    """The classes of a head on a grid."""

    centres: Classes
    """`(X, Y, Z)`, class at the centre of each voxel."""
    edges: NDArray[np.intp]
    """`(edges,)`, flat indices of the voxels in which several classes may meet."""
    samples: Classes
    """`(samples, edges)`, classes at places spread over each of these voxels."""


def sample_classes(label_map: LabelMap, grid: TemplateGrid, deformation: Deformation, anchor_mm: F64) -> Sampling:
    """Sample a deformed label map.

    Args:
        label_map: the map.
        grid: grid of the head, whose centre is the origin.
        deformation: map from places on the grid to places in the map.
        anchor_mm: `(3,)`, place in the map that belongs to the origin.
    """
    table = label_map.classes.ravel()
    places = _places(label_map, grid, deformation, anchor_mm)
    centres = np.empty(grid.shape, label_map.classes.dtype)
    for plane, place in zip(centres, places.swapaxes(0, 1), strict=True):
        table.take(_flat_index(place, label_map.classes.shape), out=plane, mode="clip")
    edges = np.flatnonzero(_meeting(centres, all_voxels=bool(np.max(grid.spacing_mm / label_map.spacing_mm) > 1.5)))
    at_edges = places.reshape(3, -1)[:, edges]
    offsets = list(_offsets(label_map, grid, deformation))
    samples = np.empty((len(offsets), len(edges)), centres.dtype)
    for row, offset in zip(samples, offsets, strict=True):
        for first in range(0, len(edges), 65536):
            part = slice(first, first + 65536)
            index = _flat_index(at_edges[:, part] + offset[:, None], label_map.classes.shape)
            table.take(index, out=row[part], mode="clip")
    return Sampling(centres, edges, samples)


def _places(
    label_map: LabelMap, grid: TemplateGrid, deformation: Deformation, anchor_mm: F64
) -> NDArray[np.signedinteger]:
    """Compute the place in the map of each voxel, `(3, X, Y, Z)`, in 64ths of a voxel.

    Places outside the map are moved to its border.
    """
    scale = (STEPS / label_map.spacing_mm)[:, None]
    matrix = (deformation.matrix * scale).astype(np.float32)
    start = anchor_mm * scale[:, 0] + STEPS / 2
    axes_mm = [grid.positions_mm(axis) for axis in range(3)]
    first, second, third = (deformation.bases(axis, axes_mm[axis]) for axis in range(3))
    rows = np.einsum("xa,dabc->xdbc", first, deformation.knots_mm, optimize=True)
    shifts = [axes_mm[1].astype(np.float32)[:, None], axes_mm[2].astype(np.float32)[None, :]]
    most = (np.array(label_map.classes.shape) * STEPS - 1).astype(np.float32)
    places = np.empty((3, *grid.shape), np.int16 if max(label_map.classes.shape) <= MAX_SIDE else np.int32)
    for x, x_mm in enumerate(axes_mm[0]):
        right, front, top = second @ rows[x] @ third.T
        right += np.float32(x_mm)
        front += shifts[0]
        top += shifts[1]
        for axis in range(3):
            place = matrix[axis, 0] * right
            place += matrix[axis, 1] * front
            place += matrix[axis, 2] * top
            place += np.float32(start[axis])
            places[axis, x] = np.clip(place, 0, most[axis], out=place)
    return places


def _flat_index(places: NDArray[np.signedinteger], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the flat index `(...)` of the voxels at `places` `(3, ...)`."""
    voxels = places >> 6
    index = voxels[0].astype(np.intp)
    index *= shape[1]
    index += voxels[1]
    index *= shape[2]
    index += voxels[2]
    return index


def _meeting(centres: Classes, *, all_voxels: bool) -> NDArray[np.bool_]:
    """Return where a voxel of `(X, Y, Z)` differs from one of its 26 neighbours, or all voxels near the head."""
    lowest, highest = centres, centres
    for axis in range(3):
        lowest, highest = _widened(lowest, axis, np.minimum), _widened(highest, axis, np.maximum)
    return highest > 0 if all_voxels else lowest != highest


def _widened(values: Classes, axis: int, choose: np.ufunc) -> Classes:
    """Return the lowest or highest of each voxel of `(X, Y, Z)` and its two neighbours along an axis."""
    result = values.copy()
    before, after = [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    choose(result[tuple(after)], values[tuple(before)], out=result[tuple(after)])
    choose(result[tuple(before)], values[tuple(after)], out=result[tuple(before)])
    return result


def _offsets(label_map: LabelMap, grid: TemplateGrid, deformation: Deformation) -> Iterator[NDArray[np.signedinteger]]:
    """Yield the samples' places relative to the centre of their voxel, `(3,)` each, in 64ths of a voxel of the map."""
    counts = [
        int(np.clip(np.ceil(1.5 * mm / own), 2, 4))
        for mm, own in zip(grid.spacing_mm, label_map.spacing_mm, strict=True)
    ]
    for each in np.ndindex(*counts):
        inside = SPREAD_VOX * ((np.array(each) + 0.5) / counts - 0.5)
        offset = deformation.matrix @ (inside * grid.spacing_mm) / label_map.spacing_mm
        yield np.round(offset * STEPS).astype(np.int16)
