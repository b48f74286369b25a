"""Where volumes lie in the world, as their headers say, and whether two of them can be the fields of one pair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from upfield.sharding.header import Header, carry_places, plane_shape, single_axis, spacing_of, stack_affine

# Axes are resampled one by one, which a rotation between the two fields would make wrong.
MAX_TILT_DEG = 2.0
# Two fields of view in one place differ by noses and necks.
LEAST_OVERLAP = 0.5
# Where one field ends, a sample is black in it and not in the other.
LEAST_COVER = 2 / 3
# Corner to corner the low field is stretched by as much as the two lengths differ.
MAX_STRETCH = 1.25
AXES = ("left-right", "posterior-anterior", "inferior-superior")


@dataclass(frozen=True)
class Extent:
    """The box that a volume fills, turned to RAS+."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm; its columns point right, anterior and superior."""
    shape: NDArray[np.int64]
    """`(3,)`, voxels along each axis."""
    is_placed: bool
    """Whether its files say where in the scanner it lies; otherwise only its axes mean something."""

    stacked_along: int | None = None
    """The axis that its slices follow one another along, where it is a stack."""

    @classmethod
    def of(cls, headers: Sequence[Header]) -> "Extent":
        """Find it in the headers of the one file of a volume, or of its slices in order; they must be sound."""
        first = headers[0]
        axis = single_axis(first.shape) if len(headers) > 1 else None
        if axis is None:
            return cls._turned(first.affine, first.shape, first.is_placed, None)
        plane = plane_shape(first, axis)
        shape = (*plane[:axis], len(headers), *plane[axis:])
        return cls._turned(stack_affine(headers, axis), shape, first.is_placed and carry_places(headers), axis)

    @classmethod
    def _turned(
        cls, affine: NDArray[np.float64], shape: tuple[int, ...], is_placed: bool, stacked_along: int | None
    ) -> "Extent":
        orientation = io_orientation(affine)
        axes = orientation[:, 0].astype(int)
        turned = np.empty(3, dtype=np.int64)
        turned[axes] = shape
        along = None if stacked_along is None else int(axes[stacked_along])
        return cls(affine @ inv_ornt_aff(orientation, shape), turned, is_placed, along)

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`."""
        return spacing_of(self.affine)

    @property
    def axes(self) -> NDArray[np.float64]:
        """Where its axes point: three unit columns, `(3, 3)`."""
        return self.affine[:3, :3] / self.spacing_mm

    @property
    def size_mm(self) -> NDArray[np.float64]:
        """Its length along each axis, `(3,)`."""
        return self.shape * self.spacing_mm

    @property
    def bounds_mm(self) -> NDArray[np.float64]:
        """Lowest and highest world coordinates that its voxels reach, `(2, 3)`."""
        corners = np.array(list(product(*([-0.5, size - 0.5] for size in self.shape))))
        world = corners @ self.affine[:3, :3].T + self.affine[:3, 3]
        return np.stack([world.min(axis=0), world.max(axis=0)])


def pair_problems(
    low: Extent, high: Extent, fit: Literal["resize", "crop_pad"], grid_mm: NDArray[np.float64]
) -> Iterator[str]:
    """Say why two fields that are taken as they lie cannot be a pair.

    Args:
        low: the low field.
        high: the high field.
        fit: how both are brought to the grids.
        grid_mm: `(3,)`, lengths of the box that samples show, where `fit` is `crop_pad`.
    """
    tilt_deg = _tilt_deg(low.axes, high.axes)
    if fit == "crop_pad" and tilt_deg > MAX_TILT_DEG:
        yield (
            f"expected low and high field turned against each other by at most {MAX_TILT_DEG:g} degrees, found "
            f"{tilt_deg:.1f}; register them with align: rigid"
        )
    if not (low.is_placed and high.is_placed):
        return
    (lowest, highest), (others_lowest, others_highest) = low.bounds_mm, high.bounds_mm
    shared_mm = np.maximum(np.minimum(highest, others_highest) - np.maximum(lowest, others_lowest), 0)
    views_mm = np.sort([highest - lowest, others_highest - others_lowest], axis=0)
    worst = int(np.argmin(shared_mm / views_mm[0]))
    if shared_mm[worst] < LEAST_OVERLAP * views_mm[0, worst]:
        yield (
            f"expected low and high field in the same place, found fields of view that share {shared_mm[worst]:.0f} of "
            f"{views_mm[0, worst]:.0f} mm {AXES[worst]}; register them with align: rigid, or mend the headers"
        )
        return
    wanted_mm = np.minimum(grid_mm, views_mm[1])
    least = int(np.argmin(shared_mm / wanted_mm))
    if fit == "crop_pad" and shared_mm[least] < LEAST_COVER * wanted_mm[least]:
        yield (
            f"expected both fields to show the head, found fields of view that share {shared_mm[least]:.0f} of "
            f"{wanted_mm[least]:.0f} mm {AXES[least]}; complete the shorter one, or leave the pair out"
        )
    stretch = np.maximum(low.size_mm / high.size_mm, high.size_mm / low.size_mm)
    longest = int(np.argmax(stretch))
    if fit == "resize" and stretch[longest] > MAX_STRETCH:
        yield (
            f"expected fields of view of the same size, which fit: resize lays corner to corner, found "
            f"{low.size_mm[longest]:.0f} mm of low and {high.size_mm[longest]:.0f} mm of high field {AXES[longest]}; "
            "complete the shorter one, or use fit: crop_pad, which keeps proportions"
        )


def _tilt_deg(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    cosine = np.clip((np.trace(high.T @ low) - 1) / 2, -1, 1)
    return float(np.degrees(np.arccos(cosine)))
