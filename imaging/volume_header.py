"""The header of a volume: that of its one file, or what the headers of a stack's slices say together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.imaging.header import Header, VoxelLayout, expect_three_dimensions, read_header

# Slices whose origins are no farther apart have no places.
UNPLACED_MM = 1e-3


@dataclass(frozen=True)
class VolumeHeader:
    """What the files of one volume say about it, in the files' own axis order."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm."""
    shape: tuple[int, ...]
    """Voxels along each of the three axes."""
    layouts: tuple[VoxelLayout, ...]
    """How each file stores its voxels, in the order of the files."""
    is_placed: bool
    """Whether the files say where the volume lies in the scanner; otherwise only its axes mean something."""
    stacked_axis: int | None = None
    """The axis along which slice files follow one another; None for a volume in one file."""

    @classmethod
    def of(cls, headers: Sequence[Header]) -> "VolumeHeader":
        """Build it from the header of a volume's one file, or from those of its slices in order.

        Args:
            headers: sound ones: one of three dimensions, or slices of equal shapes.
        """
        first = headers[0]
        axis = single_axis(first.shape) if len(headers) > 1 else None
        # Slices of one scan share a layout, so that a stack's header stays small in memory and on its way to a worker.
        shared: dict[VoxelLayout, VoxelLayout] = {}
        layouts = tuple(shared.setdefault(header.layout, header.layout) for header in headers)
        if axis is None:
            return cls(first.affine, first.shape, layouts, first.is_placed)
        plane = plane_shape(first, axis)
        shape = (*plane[:axis], len(headers), *plane[axis:])
        return cls(stack_affine(headers, axis), shape, layouts, first.is_placed and carry_places(headers), axis)


def read_volume_header(path: Path, orientation: str | None = None) -> VolumeHeader:
    """Read the header of a volume in one file.

    Args:
        path: a file as `read_header` takes it.
        orientation: axis codes, `RAS` for instance, to assume if the file does not say where its axes point.

    Raises:
        VolumeError: missing, unreadable, or not one 3-D real volume.
    """
    header = read_header(path, orientation)
    expect_three_dimensions(header, path)
    return VolumeHeader.of([header])


def read_stack_header(paths: Sequence[Path], orientation: str | None = None) -> VolumeHeader:
    """Read the headers of a stack's slice files.

    Args:
        paths: files in slice order, at least two.
        orientation: axis codes of the stack, to assume if its files do not say where their axes point.

    Raises:
        VolumeError: a slice is missing, unreadable, or of another shape than the first.
    """
    if len(paths) < 2:
        raise VolumeError(str(paths[0]), "expected at least 2 slices, found 1. Use a pattern without {slice}.")
    headers = [read_header(path, orientation) for path in paths]
    axes = [slice_axis(header, path) for path, header in zip(paths, headers, strict=True)]
    for number, message in unlike_the_first(headers, axes):
        raise VolumeError(str(paths[number]), message)
    return VolumeHeader.of(headers)


def slice_axis(header: Header, path: Path) -> int:
    """Return the axis that a slice file is perpendicular to: its single-voxel one, or the third that it lacks.

    Raises:
        VolumeError: the file holds more or less than one slice.
    """
    axis = single_axis(header.shape)
    if axis is None:
        raise VolumeError(
            str(path), f"expected one slice, found shape {header.shape}. Use a pattern without {{slice}}."
        )
    return axis


def single_axis(shape: Sequence[int]) -> int | None:
    """Return the last axis of size 1 in a `shape`, 2 if that has two dimensions, or None if there is no such axis."""
    if len(shape) == 2:
        return 2
    single = [axis for axis, size in enumerate(shape) if size == 1]
    return single[-1] if len(shape) == 3 and single else None


def unlike_the_first(headers: Sequence[Header], axes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Find the slices of a stack that have another shape, or lie across another axis, than its first.

    Args:
        headers: of the slices, in order.
        axes: what `slice_axis` returns for each.

    Yields:
        Number of each such slice, and what is wrong with it.
    """
    plane = plane_shape(headers[0], axes[0])
    for number, (header, axis) in enumerate(zip(headers, axes, strict=True)):
        if (own := plane_shape(header, axis)) != plane:
            yield number, f"expected a slice of shape {plane} like the first of its stack, found {own}"
        elif axis != axes[0]:
            yield number, f"expected a slice across axis {axes[0]} like the first, found one across axis {axis}"


def plane_shape(header: Header, axis: int) -> tuple[int, ...]:
    """Return the shape of a slice file without its single-voxel `axis`."""
    return tuple(size for number, size in enumerate(header.shape) if number != axis)


def stack_affine(headers: Sequence[Header], axis: int) -> NDArray[np.float64]:
    """Compute the affine of slices stacked along `axis`.

    If the origins differ, the distance between the first and the last gives the step from slice to slice. If all are
    the same, slices carry no places, and the first header's spacing gives the step.

    Returns:
        `(4, 4)`, voxel index -> world mm.
    """
    affine = headers[0].affine.copy()
    if carry_places(headers):
        affine[:3, axis] = (headers[-1].affine[:3, 3] - affine[:3, 3]) / (len(headers) - 1)
    return affine


def carry_places(headers: Sequence[Header]) -> bool:
    """Return whether slices have origins of their own."""
    return bool(np.linalg.norm(headers[-1].affine[:3, 3] - headers[0].affine[:3, 3]) > UNPLACED_MM)
