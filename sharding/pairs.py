"""One subject's files -> its low/high volume pairs on the high-field grid, real and synthetic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.cohort import Source, Subject, Unit
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.errors import VolumeError
from upfield.sharding.intensity import degrade, draw_degradation, generator_for, normalise
from upfield.sharding.resample import box_centre, resample_box, zoom_to
from upfield.sharding.volume import Volume, read_stack, read_volume

TOP_MARGIN_MM = 2.0
MAX_TILT_DEG = 2.0


@dataclass(frozen=True)
class Pair:
    """One low-field volume brought to the high-field grid, and its high-field partner."""

    unit: Unit
    """Whose pair, of which kind and variant."""
    low: NDArray[np.float16]
    """`(X, Y, Z)` in [0, 1], on the high-field grid."""
    high: NDArray[np.float16]
    """`(X, Y, Z)` in [0, 1]."""
    parameters: dict[str, Any]
    """What a synthetic low field was made with."""


def load(source: Source) -> Volume:
    """Read a subject's volume or slice stack, in RAS+."""
    return read_stack(source.paths) if source.stacked else read_volume(source.paths[0])


def make_pairs(subject: Subject, units: tuple[Unit, ...], config: ShardConfig) -> Iterator[Pair]:
    """Read a subject once and give the pair of each of its units.

    Raises:
        VolumeError: a file is not what it should be.
    """
    grids = Grids(config.geometry, subject.fit)
    high_file = load(subject.high)
    high = grids.high_from_file(high_file)
    high_scaled = normalise(high, str(subject.high))
    high_half = high_scaled.astype(np.float16)
    for unit in units:
        if unit.kind == "real":
            assert subject.low is not None
            low, parameters = grids.low_from_file(load(subject.low), high_file), {}
        else:
            low, parameters = _synthetic(high_scaled, grids, unit, config)
        up = normalise(grids.low_to_high(low), f"{subject.low or subject.high} ({unit.kind})")
        yield Pair(unit, up.astype(np.float16), high_half, parameters)


def _synthetic(
    high_scaled: NDArray[np.float32], grids: "Grids", unit: Unit, config: ShardConfig
) -> tuple[NDArray[np.float32], dict[str, float]]:
    rng = generator_for(config.seed, unit.cohort, unit.subject, unit.variant)
    parameters = draw_degradation(config.synthetic, rng)
    small = np.clip(grids.high_to_low(high_scaled), 0, 1)
    return degrade(small, parameters, config.synthetic.noise_bright_ratio, rng), parameters.to_tree()


@dataclass(frozen=True)
class Grids:
    """The moves between files, the low-field grid and the high-field grid, under one `fit`.

    `resize` works on arrays alone, corner voxel to corner voxel, as the report we follow does. `crop_pad` works in mm:
    both grids are boxes around one point, so that proportions and the position of every voxel stay true.
    """

    geometry: GeometryConfig
    """The two grids."""
    fit: str
    """`resize` or `crop_pad`."""

    def high_from_file(self, volume: Volume) -> NDArray[np.float32]:
        """Bring a high-field volume to the high-field grid, `(X, Y, Z)`."""
        if self.fit == "resize":
            return zoom_to(volume.voxels, self.geometry.high_shape)
        return self._box(volume, head_centre(volume, self._extent_mm), "high")

    def low_from_file(self, volume: Volume, high: Volume) -> NDArray[np.float32]:
        """Bring a low-field volume to the low-field grid `(I, J, K)`, in the same place as its partner `high`."""
        if self.fit == "resize":
            return zoom_to(volume.voxels, self.geometry.low_shape)
        refuse_tilt(volume, high)
        centre_mm = high.affine @ np.append(head_centre(high, self._extent_mm), 1.0)
        return self._box(volume, (np.linalg.inv(volume.affine) @ centre_mm)[:3], "low")

    def low_to_high(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate `(I, J, K)` on the low-field grid to the high-field grid `(X, Y, Z)`."""
        return self._between(low, "low", "high")

    def high_to_low(self, high: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sample `(X, Y, Z)` on the high-field grid at the low-field grid `(I, J, K)`."""
        return self._between(high, "high", "low")

    @property
    def _extent_mm(self) -> NDArray[np.float64]:
        return np.array(self.geometry.high_shape) * np.array(self.geometry.high_spacing_mm)

    def _grid(self, field: str) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
        geometry = self.geometry
        if field == "high":
            return geometry.high_shape, np.array(geometry.high_spacing_mm)
        return geometry.low_shape, np.array(geometry.low_spacing_mm)

    def _between(self, voxels: NDArray[np.float32], source: str, target: str) -> NDArray[np.float32]:
        shape, spacing_mm = self._grid(target)
        if self.fit == "resize":
            return zoom_to(voxels, shape)
        return resample_box(voxels, self._grid(source)[1], box_centre(voxels.shape), shape, spacing_mm)

    def _box(self, volume: Volume, centre_vox: NDArray[np.float64], field: str) -> NDArray[np.float32]:
        shape, spacing_mm = self._grid(field)
        # Outside the file it is as dark as its darkest voxel, not zero, which may be the middle of a scale.
        darkest = volume.voxels.min()
        return resample_box(volume.voxels - darkest, volume.spacing_mm, centre_vox, shape, spacing_mm)


def refuse_tilt(low: Volume, high: Volume) -> None:
    """Raise VolumeError where two fields are turned against each other by more than `MAX_TILT_DEG`.

    Axes are resampled one by one, which a rotation between the two would make wrong.
    """
    axes_low, axes_high = (volume.affine[:3, :3] / volume.spacing_mm for volume in (low, high))
    cosine = np.clip((np.trace(axes_high.T @ axes_low) - 1) / 2, -1, 1)
    tilt_deg = float(np.degrees(np.arccos(cosine)))
    if tilt_deg > MAX_TILT_DEG:
        raise VolumeError(
            f"expected low and high field turned against each other by at most {MAX_TILT_DEG:g} degrees, found "
            f"{tilt_deg:.1f}; register and resample the pair first"
        )


def head_centre(volume: Volume, extent_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find where the box around the head should be centred.

    The middle of the head along each axis; along the body axis, where neck and shoulders may fill the image, a head
    taller than the box is aligned at its top instead, so that no brain is cut off. An axis that the box covers exactly
    is left as it is: there is nothing to crop or pad.

    Args:
        volume: head in RAS+.
        extent_mm: `(3,)`, the box.

    Returns:
        Voxel index `(3,)`, rounded to whole or half voxels.
    """
    mask = volume.voxels > 0.2 * np.percentile(volume.voxels, 99)
    middle = box_centre(volume.voxels.shape)
    box_vox = extent_mm / volume.spacing_mm
    centre = middle.copy()
    for axis in range(3):
        if abs(box_vox[axis] - volume.voxels.shape[axis]) < 1:
            continue
        area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
        # A plane through the head's edge has some area; a few bright voxels of noise have not.
        planes = np.flatnonzero(area > 0.02 * area.max())
        first, last = (planes[0], planes[-1]) if len(planes) else (0, len(area) - 1)
        too_tall = axis == 2 and last - first > box_vox[axis]
        top = last + TOP_MARGIN_MM / volume.spacing_mm[axis]
        wanted = top - box_vox[axis] / 2 if too_tall else (first + last) / 2
        # Samples of an odd box fall on voxels when its centre does, those of an even one when it lies between two: at
        # equal spacing nothing is then interpolated for no gain.
        offset = (round(float(box_vox[axis])) - 1) % 2 / 2
        centre[axis] = np.round(wanted - offset) + offset
    return centre
