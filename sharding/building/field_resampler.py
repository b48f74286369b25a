"""Resample volumes from their files to the two grids of a set, and between these grids."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.air import Air
from upfield.imaging.resample import box_centre, resample_box, zoom_to
from upfield.imaging.volume import Volume
from upfield.sharding.configuration import GeometryConfig, SpacingMm, Triple

TOP_MARGIN_MM = 2.0


@dataclass(frozen=True)
class FieldResampler:
    """Resampling between the low-field and the high-field grid of a subject, and from its files to them.

    `resize` ignores world coordinates and maps corner voxels to corner voxels, as in the report that we follow.
    `crop_pad` works in mm: both grids are boxes around one point, which keeps proportions and voxel positions.
    """

    geometry: GeometryConfig
    """The two grids."""
    centre_mm: NDArray[np.float64] | None
    """World coordinates of the centre of both boxes, `(3,)`; None for `resize`."""

    @classmethod
    def around(cls, geometry: GeometryConfig, fit: str, high: Volume, air: Air) -> "FieldResampler":
        """Place the grids around the head of a high-field volume with the given background."""
        if fit == "resize":
            return cls(geometry, None)
        return cls(geometry, to_world(high.affine, head_centre(high, air, np.array(geometry.high_size_mm))))

    def high_from_file(self, volume: Volume, air: Air) -> Volume:
        """Resample a high-field volume to the high-field grid `(X, Y, Z)`."""
        return self._from_file(volume, air, self.geometry.high_shape, self.geometry.high_spacing_mm)

    def low_from_file(self, volume: Volume, air: Air) -> Volume:
        """Resample a low-field volume to the low-field grid `(I, J, K)`."""
        return self._from_file(volume, air, self.geometry.low_shape, self.geometry.low_spacing_mm)

    def _from_file(self, volume: Volume, air: Air, shape: Triple, spacing_mm: SpacingMm) -> Volume:
        # Voxels outside the file become air. The operators fill with zero, which may be in the middle of the scale.
        padding = np.float32(air.padding)
        above = replace(volume, voxels=volume.voxels - padding) if padding else volume
        if self.centre_mm is None:
            placed = _zoomed(above, shape, self.geometry.average)
        else:
            placed = _boxed(above, to_voxel(volume.affine, self.centre_mm), shape, spacing_mm, self.geometry.average)
        return replace(placed, voxels=placed.voxels + padding) if padding else placed

    def low_to_high(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate `(I, J, K)` on the low-field grid to the high-field grid `(X, Y, Z)`."""
        geometry = self.geometry
        if self.centre_mm is None:
            return zoom_to(low, geometry.high_shape)
        spacings_mm = np.array(geometry.low_spacing_mm), np.array(geometry.high_spacing_mm)
        return resample_box(low, spacings_mm[0], box_centre(low.shape), geometry.high_shape, spacings_mm[1])

    def acquired_to_high(self, low: Volume, high: Volume) -> NDArray[np.float32]:
        """Interpolate a low field on a grid of its own, in the world of `high`, to the grid of `high` `(X, Y, Z)`."""
        shape = self.geometry.high_shape
        centre_vox = to_voxel(low.affine, to_world(high.affine, box_centre(shape)))
        return resample_box(low.voxels, low.spacing_mm, centre_vox, shape, high.spacing_mm)

    def high_to_low(self, high: Volume, *, average: bool = False) -> Volume:
        """Resample a volume on the high-field grid to the low-field grid `(I, J, K)`.

        Args:
            high: the volume.
            average: average over the voxels of the low-field grid, instead of sampling their centres.
        """
        if self.centre_mm is None:
            return _zoomed(high, self.geometry.low_shape, average)
        centre = box_centre(high.voxels.shape)
        return _boxed(high, centre, self.geometry.low_shape, self.geometry.low_spacing_mm, average)


def _zoomed(volume: Volume, shape: Triple, average: bool) -> Volume:
    """Resample with corner voxels mapped to corner voxels, and adapt the affine."""
    step = (np.array(volume.voxels.shape) - 1) / (np.array(shape) - 1)
    return Volume(zoom_to(volume.voxels, shape, average=average), volume.affine @ np.diag([*step, 1.0]))


def _boxed(
    volume: Volume, centre_vox: NDArray[np.float64], shape: Triple, spacing_mm: SpacingMm, average: bool
) -> Volume:
    """Resample to a box around a voxel, and adapt the affine."""
    step = np.array(spacing_mm) / volume.spacing_mm
    voxels = resample_box(volume.voxels, volume.spacing_mm, centre_vox, shape, np.array(spacing_mm), average=average)
    move = np.diag([*step, 1.0])
    move[:3, 3] = centre_vox - step * box_centre(shape)
    return Volume(voxels, volume.affine @ move)


def to_world(affine: NDArray[np.float64], voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a voxel index `(3,)` to world mm `(3,)`."""
    return affine[:3, :3] @ voxel + affine[:3, 3]


def to_voxel(affine: NDArray[np.float64], world_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert world mm `(3,)` to a voxel index `(3,)`."""
    return np.linalg.inv(affine[:3, :3]) @ (world_mm - affine[:3, 3])


def head_centre(volume: Volume, air: Air, extent_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the centre of the box around the head.

    Along each axis, this is the middle of the head. Along the body axis, neck and shoulders may fill the image: a head
    that is taller than the box is aligned at its top instead, so that no brain is cut off. Along an axis on which box
    and image are equally long, there is nothing to crop or pad, and the centre of the image is used. It is also used
    if air cannot be told from the head.

    Args:
        volume: volume that shows a head, in RAS+.
        air: its background.
        extent_mm: `(3,)`, side lengths of the box.

    Returns:
        Voxel index `(3,)`, rounded to whole or half voxels.
    """
    mask = volume.voxels > air.threshold
    middle = box_centre(volume.voxels.shape)
    box_vox = extent_mm / volume.spacing_mm
    centre = middle.copy()
    for axis in range(3):
        if abs(box_vox[axis] - volume.voxels.shape[axis]) < 1:
            continue
        area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        # Even at the edge of the head, a plane has more bright voxels than noise alone produces.
        planes = np.flatnonzero(area > 0.02 * area.max())
        first, last = (planes[0], planes[-1]) if len(planes) else (0, len(area) - 1)
        too_tall = axis == 2 and last - first > box_vox[axis]
        top = last + TOP_MARGIN_MM / volume.spacing_mm[axis]
        wanted = top - box_vox[axis] / 2 if too_tall else (first + last) / 2
        # At equal spacing, this puts samples on voxels, so that nothing is interpolated. The centre of a box with an
        # odd number of voxels lies on a voxel; with an even number, it lies between two voxels.
        offset = (round(float(box_vox[axis])) - 1) % 2 / 2
        # Rounding half to even would depend on the number of voxels in front of the head.
        centre[axis] = np.floor(wanted - offset + 0.5) + offset
    return centre
