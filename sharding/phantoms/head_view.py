"""The position of a head in the field of view, and what the field of view or defacing cuts off."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.phantoms.anatomy import F64, TemplateGrid
from upfield.sharding.phantoms.deformation import Deformation
from upfield.sharding.phantoms.label_map import LabelMap

SHIFT_MM = 6.0
TOP_MARGIN_MM = (1.0, 10.0)
# Where the field of view may cut the head off: axis, side (0 is the lower end, 1 the upper one, 2 is both), relative
# frequency, and range of the depth in mm.
CUTS = ((2, 0, 0.5, (10.0, 60.0)), (2, 1, 0.1, (0.0, 8.0)), (1, 1, 0.2, (0.0, 20.0)), (0, 2, 0.2, (0.0, 10.0)))
FACE_DEG = (25.0, 60.0)
FACE_MARGIN_MM = (3.0, 15.0)


@dataclass(frozen=True)
class View:
    """The field of view of a head."""

    anchor_mm: F64
    """`(3,)`, place in the label map that belongs to the centre of the grid."""
    box: tuple[slice, slice, slice]
    """The part of the grid that the field of view covers."""
    face_normal: F64
    """`(3,)`, direction on the grid in which the face lies, as seen from the brain."""
    face_margin_mm: float
    """Distance in this direction from the brain to the plane at which defacing cuts."""

    def behind_face(self, grid: TemplateGrid, brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the voxels `(X, Y, Z)` that defacing keeps; all of the brain `(X, Y, Z)` is among them."""
        places = np.ix_(*(grid.positions_mm(axis).astype(np.float32) for axis in range(3)))
        right, front, top = (place * np.float32(part) for place, part in zip(places, self.face_normal, strict=True))
        reach = right + front + top
        limit = reach[brain].max() + self.face_margin_mm if brain.any() else np.inf
        return reach < limit


def draw_view(
    label_map: LabelMap,
    grid: TemplateGrid,
    deformation: Deformation,
    parameters: dict[str, Any],
    rng: np.random.Generator,
) -> View:
    """Draw the position of the head, and what is cut off, and add it to `parameters`.

    The head is in the middle of the grid. The top of a head that is taller than the grid lies near the top of the grid
    instead, as when a scan is put on the grid.
    """
    to_grid = np.linalg.inv(deformation.matrix).astype(np.float64)
    half_mm = np.array([size * mm / 2 for size, mm in zip(grid.shape, grid.spacing_mm, strict=True)])
    ends_mm = (label_map.view_vox + np.array([-0.5, 0.5])) * label_map.spacing_mm[:, None]
    middle_mm = ends_mm.mean(axis=1)
    size_mm = np.ptp(ends_mm, axis=1) / np.linalg.norm(deformation.matrix, axis=1)
    place = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    margin = rng.uniform(*TOP_MARGIN_MM)
    if size_mm[2] + margin > 2 * half_mm[2]:
        place[2] = half_mm[2] - margin - size_mm[2] / 2
    anchor = middle_mm - deformation.matrix @ place
    parameters["shift_mm"] = [round(float(each), 3) for each in place]
    bounds = np.stack([-half_mm, half_mm], axis=1)
    _cut_as_map(label_map, ends_mm, anchor, to_grid, bounds)
    if parameters["cut"]:
        _cut_more(bounds, place, size_mm, rng)
    box = []
    for axis in range(3):
        index = (bounds[axis] + half_mm[axis]) / grid.spacing_mm[axis]
        box.append(slice(max(0, round(index[0])), max(0, min(grid.shape[axis], round(index[1])))))
    parameters["view_vox"] = [[each.start, each.stop] for each in box]
    angle = np.deg2rad(rng.uniform(*FACE_DEG))
    normal = np.array([0.0, np.cos(angle), -np.sin(angle)])
    return View(anchor, (box[0], box[1], box[2]), normal, float(rng.uniform(*FACE_MARGIN_MM)))


def _cut_as_map(label_map: LabelMap, ends_mm: F64, anchor_mm: F64, to_grid: F64, bounds: F64) -> None:
    """Bring `bounds` `(3, 2)` to the planes at which the map itself was cut off."""
    border = np.stack([np.ones(3), np.array(label_map.classes.shape) - 2], axis=1)
    for axis in range(3):
        for side in range(2):
            if label_map.view_vox[axis, side] == border[axis, side]:
                continue
            place = ends_mm.mean(axis=1)
            place[axis] = ends_mm[axis, side]
            reach = (to_grid @ (place - anchor_mm))[axis]
            # A mirrored head is cut off at its other side.
            if (side == 0) == (to_grid[axis, axis] > 0):
                bounds[axis, 0] = max(bounds[axis, 0], reach)
            else:
                bounds[axis, 1] = min(bounds[axis, 1], reach)


def _cut_more(bounds: F64, place_mm: F64, size_mm: F64, rng: np.random.Generator) -> None:
    """Move one or two sides of `bounds` `(3, 2)` into the head."""
    head = np.stack([place_mm - size_mm / 2, place_mm + size_mm / 2], axis=1)
    shares = np.array([share for *_, share, _ in CUTS])
    for choice in rng.choice(len(CUTS), size=rng.integers(1, 3), replace=False, p=shares / shares.sum()):
        axis, side, _, depths_mm = CUTS[choice]
        depth_mm = rng.uniform(*depths_mm)
        if side in (0, 2):
            bounds[axis, 0] = max(bounds[axis, 0], head[axis, 0]) + depth_mm
        if side in (1, 2):
            bounds[axis, 1] = min(bounds[axis, 1], head[axis, 1]) - depth_mm
