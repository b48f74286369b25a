"""The header of a volume, from its one file or from all slice files of a stack."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.imaging.formats.file_header import Header, Spaces, VoxelLayout
from upfield.imaging.header import expect_three_dimensions, read_header

# If the first and the last origin are closer than this, the files do not state the slices' positions.
UNPLACED_MM = 1e-3


@dataclass(frozen=True)
class VolumeHeader:
    """The header of one volume in one or several files, in the axis order of the files."""

    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm."""
    shape: tuple[int, ...]
    """Voxels along each of the three axes."""
    layouts: tuple[VoxelLayout, ...]
    """Layout of the voxels in each file, in the order of the files."""
    is_placed: bool
    """Whether the files state the volume's position in the scanner. If not, only its axes' directions are known."""
    stacked_axis: int | None = None
    """The axis along which slice files are stacked; None for a volume in one file."""
    spaces: Spaces = ()
    """The spaces that all files name, and the affine `(4, 4)` to each; empty if `is_placed` is false."""
    descrip: bytes = b""
    """Description in the header of the first file."""

    @classmethod
    def of(cls, headers: Sequence[Header]) -> "VolumeHeader":
        """Build the header of a volume from the header of its one file, or from the headers of its slices.

        Args:
            headers: one header with three dimensions, or the headers of slices in order, with equal shapes.
        """
        first = headers[0]
        axis = single_axis(first.shape) if len(headers) > 1 else None
        # Equal layouts are shared, so that a stack's header stays small in memory and when it is sent to a worker.
        shared: dict[VoxelLayout, VoxelLayout] = {}
        layouts = tuple(shared.setdefault(header.layout, header.layout) for header in headers)
        if axis is None:
            return cls(first.affine, first.shape, layouts, first.is_placed, None, first.spaces, first.descrip)
        plane = plane_shape(first, axis)
        shape = (*plane[:axis], len(headers), *plane[axis:])
        is_placed = first.is_placed and carry_places(headers)
        spaces = _stack_spaces(headers, axis) if is_placed else ()
        affine = spaces[0][1] if spaces else stack_affine(headers, axis)
        return cls(affine, shape, layouts, is_placed, axis, spaces, first.descrip)


def read_volume_header(path: Path, orientation: str | None = None) -> VolumeHeader:
    """Read the header of a volume in one file.

    Args:
        path: file in a format that `read_header` can read.
        orientation: axis codes, such as `RAS`, to assume if the file does not state the directions of its axes.

    Raises:
        VolumeError: the file is missing or unreadable, or is not one 3-D real volume.
    """
    header = read_header(path, orientation)
    expect_three_dimensions(header, path)
    return VolumeHeader.of([header])


def read_stack_header(paths: Sequence[Path], orientation: str | None = None) -> VolumeHeader:
    """Read the headers of a stack's slice files.

    Args:
        paths: files in slice order, at least two.
        orientation: axis codes of the stack, to assume if its files do not state the directions of their axes.

    Raises:
        VolumeError: a slice is missing or unreadable, or has a different shape from the first.
    """
    if len(paths) < 2:
        raise VolumeError(str(paths[0]), "expected at least 2 slices, found 1. Use a pattern without {slice}.")
    headers = [read_header(path, orientation) for path in paths]
    axes = [slice_axis(header, path) for path, header in zip(paths, headers, strict=True)]
    for number, message in unlike_the_first(headers, axes):
        raise VolumeError(str(paths[number]), f"{message}. Leave out slices of another scan.")
    return VolumeHeader.of(headers)


def slice_axis(header: Header, path: Path) -> int:
    """Return the axis across which a slice lies: the axis with a single voxel, or axis 2 if the file is 2-D.

    Raises:
        VolumeError: the file does not hold exactly one slice.
    """
    axis = single_axis(header.shape)
    if axis is None:
        raise VolumeError(
            str(path), f"expected one slice, found shape {header.shape}. Use a pattern without {{slice}}."
        )
    return axis


def single_axis(shape: Sequence[int]) -> int | None:
    """Return the last axis of size 1, or 2 if `shape` has two dimensions, or None if there is no such axis."""
    if len(shape) == 2:
        return 2
    single = [axis for axis, size in enumerate(shape) if size == 1]
    return single[-1] if len(shape) == 3 and single else None


def unlike_the_first(headers: Sequence[Header], axes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Find the slices of a stack whose shape or slice axis differs from that of the first slice.

    Args:
        headers: headers of the slices, in order.
        axes: result of `slice_axis` for each slice.

    Yields:
        The number of each such slice, and the problem without a full stop.
    """
    plane = plane_shape(headers[0], axes[0])
    for number, (header, axis) in enumerate(zip(headers, axes, strict=True)):
        if (own := plane_shape(header, axis)) != plane:
            yield number, f"expected a slice of shape {plane} like the first of its stack, found {own}"
        elif axis != axes[0]:
            yield number, f"expected a slice across axis {axes[0]} like the first, found one across axis {axis}"


def plane_shape(header: Header, axis: int) -> tuple[int, ...]:
    """Return the shape of a slice file without `axis`, along which it has a single voxel."""
    return tuple(size for number, size in enumerate(header.shape) if number != axis)


def stack_affine(headers: Sequence[Header], axis: int) -> NDArray[np.float64]:
    """Compute the affine of slices stacked along `axis`.

    If the origins differ, the distance between the first and the last origin gives the step from slice to slice. If all
    origins are the same, the step is the spacing in the first header.

    Returns:
        `(4, 4)`, voxel index -> world mm.
    """
    return _stacked([header.affine for header in headers], axis)


def carry_places(headers: Sequence[Header]) -> bool:
    """Return whether the headers of slices state positions, which is the case if their origins differ."""
    return _differ([header.affine for header in headers])


def name_one_space(headers: Sequence[Header]) -> bool:
    """Return whether all slices of a stack that name a space name a common one, or none of them names one."""
    return bool(_common_codes(headers)) or not any(header.spaces for header in headers)


def _common_codes(headers: Sequence[Header]) -> list[int]:
    named = [dict(header.spaces) for header in headers]
    return [code for code in named[0] if all(code in spaces for spaces in named)]


def _stack_spaces(headers: Sequence[Header], axis: int) -> Spaces:
    stacks = {code: [dict(header.spaces)[code] for header in headers] for code in _common_codes(headers)}
    return tuple((code, _stacked(affines, axis)) for code, affines in stacks.items() if _differ(affines))


def _stacked(affines: Sequence[NDArray[np.float64]], axis: int) -> NDArray[np.float64]:
    affine = affines[0].copy()
    if _differ(affines):
        affine[:3, axis] = (affines[-1][:3, 3] - affine[:3, 3]) / (len(affines) - 1)
    return affine


def _differ(affines: Sequence[NDArray[np.float64]]) -> bool:
    return bool(np.linalg.norm(affines[-1][:3, 3] - affines[0][:3, 3]) > UNPLACED_MM)
