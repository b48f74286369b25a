"""Compare the positions of two volumes from their headers, to check whether they can be the fields of one pair."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from upfield.imaging.affine import size_text, spacing_of
from upfield.imaging.placement import SharedSpace
from upfield.imaging.volume_header import VolumeHeader

# Volumes are resampled along one axis after the other, which cannot correct a rotation between the fields.
MAX_TILT_DEG = 2.0
# Where a sample lies in the field of view of only one field, it is black in the other field.
LEAST_COVER = 0.8
# If the headers do not prove that two fields are in one place, the smaller one must lie at least half in the other one.
LEAST_SHARED = 0.5
# `fit: resize` maps corners to corners. Corners that are more than two slices of 5 mm apart show different parts of the
# head.
MAX_SHIFT_MM = 10.0
# The network's smallest slice, and more than a body coil shows.
MIN_SIZE_MM, MAX_SIZE_MM = 9.0, 600.0
AXES = ("left-right", "posterior-anterior", "inferior-superior")


@dataclass(frozen=True)
class Extent:
    """The box that a volume fills, with its axes reoriented to RAS+."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm; its columns point right, anterior and superior."""
    shape: NDArray[np.int64]
    """`(3,)`, voxels along each axis."""
    is_placed: bool
    """Whether the files state the volume's position in the scanner. If not, only its axes' directions are known."""
    stacked_along: int | None = None
    """The axis along which slice files are stacked; None for a volume in one file."""

    @classmethod
    def of(cls, header: VolumeHeader) -> "Extent":
        """Compute the extent of a volume from its header, whose affine must be invertible."""
        orientation = io_orientation(header.affine)
        axes = orientation[:, 0].astype(int)
        shape = np.empty(3, dtype=np.int64)
        shape[axes] = header.shape
        along = None if header.stacked_axis is None else int(axes[header.stacked_axis])
        return cls(header.affine @ inv_ornt_aff(orientation, header.shape), shape, header.is_placed, along)

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`."""
        return spacing_of(self.affine)

    @property
    def axes(self) -> NDArray[np.float64]:
        """Directions of the axes, as three columns of length 1, `(3, 3)`."""
        return self.affine[:3, :3] / self.spacing_mm

    @property
    def size_mm(self) -> NDArray[np.float64]:
        """Length of the volume along each axis, `(3,)`."""
        return self.shape * self.spacing_mm

    @property
    def bounds_mm(self) -> NDArray[np.float64]:
        """Lowest and highest world coordinates of the volume, including whole border voxels, `(2, 3)`."""
        corners = np.array(list(product(*([-0.5, size - 0.5] for size in self.shape))))
        world = corners @ self.affine[:3, :3].T + self.affine[:3, 3]
        return np.stack([world.min(axis=0), world.max(axis=0)])


def size_problem(size_mm: NDArray[np.float64]) -> str | None:
    """Return a sentence without a full stop if a field of view `(3,)` cannot show a head, otherwise None."""
    size = f"found {size_text(size_mm)}"
    if size_mm.min() < MIN_SIZE_MM:
        return f"expected a field of view of at least {MIN_SIZE_MM:g} mm along every axis, {size}"
    if size_mm.max() > MAX_SIZE_MM:
        return f"expected a field of view of at most {MAX_SIZE_MM:g} mm, {size}"
    return None


def tilt_problem(low: Extent, high: Extent) -> str | None:
    """Return a message if the fields are rotated relative to each other, otherwise None."""
    if (tilt_deg := _tilt_deg(low.axes, high.axes)) <= MAX_TILT_DEG:
        return None
    return (
        f"expected low and high field rotated relative to each other by at most {MAX_TILT_DEG:g} degrees, found "
        f"{tilt_deg:.1f}. Register them with align: rigid."
    )


def space_problem(
    shared: SharedSpace, align: Literal["none", "rigid"], low: Extent, high: Extent
) -> tuple[str, str] | None:
    """Judge whether two fields that are brought together by their positions name one space.

    Args:
        shared: the space that was chosen for the two.
        align: whether the high field is registered, which corrects its position but not its scale.
        low: the low field in that space.
        high: the high field in that space.

    Returns:
        The check and the message; `affine` if the pair would be misplaced, `space` if nobody can know, otherwise None.
    """
    if shared.doubt is None:
        return None
    if align == "rigid":
        if shared.is_apart or not (low.is_placed and high.is_placed):
            return "space", f"{shared.doubt}. Check with upfield preview that the registration brought them together."
        return None
    remedy = "Correct the codes, or register the two with align: rigid."
    shared_mm = np.minimum(low.bounds_mm[1], high.bounds_mm[1]) - np.maximum(low.bounds_mm[0], high.bounds_mm[0])
    least_mm = LEAST_SHARED * np.minimum(*(np.ptp(extent.bounds_mm, axis=0) for extent in (low, high)))
    if shared.is_apart or (shared_mm < least_mm).any():
        return "affine", f"{shared.doubt}, so the two would not show the same place. {remedy}"
    return "space", f"{shared.note}. {remedy}"


def place_doubt(
    low: Extent, high: Extent, fit: Literal["resize", "crop_pad"], grid_mm: NDArray[np.float64]
) -> str | None:
    """Return a warning if two unregistered fields do not seem to show the same part of the head.

    Args:
        low: the low field.
        high: the high field.
        fit: method by which both fields are resampled to their grids.
        grid_mm: `(3,)`, size of the box that samples show; used only if `fit` is `crop_pad`.

    Returns:
        The warning; None if the positions agree, or if the files do not state a position.
    """
    if not (low.is_placed and high.is_placed):
        return None
    bounds_mm = low.bounds_mm, high.bounds_mm
    if fit == "resize":
        apart_mm = np.abs(bounds_mm[0] - bounds_mm[1]).max(axis=0)
        worst = int(np.argmax(apart_mm))
        if apart_mm[worst] <= MAX_SHIFT_MM:
            return None
        return (
            f"fit: resize maps the borders of both fields of view onto each other, but some borders are "
            f"{apart_mm[worst]:.0f} mm apart {AXES[worst]} (low field {low.size_mm[worst]:.0f} mm, "
            f"high field {high.size_mm[worst]:.0f} mm). Use fit: crop_pad, which keeps the position of every voxel, or "
            "align: rigid."
        )
    shared_mm = np.minimum(bounds_mm[0][1], bounds_mm[1][1]) - np.maximum(bounds_mm[0][0], bounds_mm[1][0])
    wanted_mm = np.minimum(grid_mm, np.maximum(*(highest - lowest for lowest, highest in bounds_mm)))
    least = int(np.argmin(shared_mm / wanted_mm))
    if shared_mm[least] >= LEAST_COVER * wanted_mm[least]:
        return None
    return (
        f"both fields must show the whole head, but their fields of view share only {max(shared_mm[least], 0):.0f} of "
        f"{wanted_mm[least]:.0f} mm {AXES[least]}. Complete the shorter scan, or register the two with align: rigid."
    )


def _tilt_deg(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    cosine = np.clip((np.trace(high.T @ low) - 1) / 2, -1, 1)
    return float(np.degrees(np.arccos(cosine)))
