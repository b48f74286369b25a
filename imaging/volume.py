"""Read NIfTI volumes and stacks of slice files, and turn them to RAS+."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt2axcodes,
    ornt_transform,
)
from numpy.typing import NDArray

from upfield.common.errors import VolumeError
from upfield.imaging.compressed_files import is_compressed, read_content
from upfield.imaging.header import (
    UNREADABLE,
    Header,
    expect_three_dimensions,
    plane_shape,
    read_header,
    slice_axis,
    spacing_of,
    stack_affine,
    unlike_the_first,
    unreadable,
)


@dataclass(frozen=True)
class Volume:
    """A volume in RAS+ order: axis 0 runs to the right, 1 to the front, 2 to the top."""

    voxels: NDArray[np.float32]
    """`(I, J, K)` in scanner units."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm."""
    axcodes: tuple[str, str, str] = ("R", "A", "S")
    """Where the axes of the file that it came from point."""

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`, in mm."""
        return spacing_of(self.affine)


def read_volume(path: Path, orientation: str | None = None) -> Volume:
    """Read a NIfTI or MGH volume and turn it to RAS+.

    Args:
        path: `.nii`, `.nii.gz`, `.mgh` or `.mgz` holding one 3-D volume; trailing dimensions of size 1 are dropped.
        orientation: axis codes, `RAS` for instance, to assume where the file does not say where its axes point;
            without them, what the format's own programs assume.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units (slope and intercept applied) and their affine.

    Raises:
        VolumeError: missing, unreadable, not one 3-D real volume, not finite, constant, or no usable affine.
    """
    header = read_header(path, orientation)
    expect_three_dimensions(header, path)
    volume = to_ras(_read_voxels(path, header), header.affine, str(path))
    refuse_empty(volume.voxels, str(path))
    return volume


def read_stack(paths: Sequence[Path], orientation: str | None = None) -> Volume:
    """Read one slice per file, stack them in the order given, and turn the result to RAS+.

    A slice file is 2-D, or 3-D with one axis of a single voxel; the volume grows along that axis. Where the slices'
    affines have different origins, the distance between the first and the last gives the spacing along the stack.

    Args:
        paths: files in slice order, at least two.
        orientation: axis codes of the stack to assume where its files do not say where their axes point.

    Returns:
        Voxels `(I, J, K)` float32 in scanner units and their affine.

    Raises:
        VolumeError: a slice is unreadable or of another shape than the first, or the stack is not finite or constant.
    """
    where = f"{paths[0]} .. {paths[-1].name}"
    if len(paths) < 2:
        raise VolumeError(str(paths[0]), "expected at least 2 slices, found 1; use a pattern without {slice}")
    headers = [read_header(path, orientation) for path in paths]
    axes = [slice_axis(header, path) for path, header in zip(paths, headers, strict=True)]
    for number, message in unlike_the_first(headers, axes):
        raise VolumeError(str(paths[number]), message)
    plane = plane_shape(headers[0], axes[0])
    slices = [_read_voxels(path, header).reshape(plane) for path, header in zip(paths, headers, strict=True)]
    volume = to_ras(np.stack(slices, axis=axes[0]), stack_affine(headers, axes[0]), where)
    refuse_empty(volume.voxels, where)
    return volume


def to_ras(voxels: NDArray[np.float32], affine: NDArray[np.float64], where: str) -> Volume:
    """Permute and flip axes so that they run right, anterior, superior as nearly as the affine allows.

    Args:
        voxels: `(I, J, K)` in any order.
        affine: `(4, 4)`, voxel index -> world mm.
        where: what to call the volume in errors.

    Raises:
        VolumeError: the affine is not finite or maps two axes onto one.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(where, f"expected an invertible affine, found {affine.tolist()}; mend the header")
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise VolumeError(where, f"expected three distinct axes, found {affine.tolist()}; mend the header")
    turned = np.ascontiguousarray(apply_orientation(voxels, orientation))
    first, second, third = ornt2axcodes(orientation)
    return Volume(turned, affine @ inv_ornt_aff(orientation, voxels.shape), (first, second, third))


def from_ras(volume: Volume) -> Volume:
    """Turn a RAS+ volume back to the axis order of the file that it came from; the place in the world stays."""
    orientation = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(volume.axcodes))
    voxels = np.ascontiguousarray(apply_orientation(volume.voxels, orientation))
    return Volume(voxels, volume.affine @ inv_ornt_aff(orientation, volume.voxels.shape), volume.axcodes)


def refuse_empty(voxels: NDArray[np.float32], where: str) -> None:
    """Raise VolumeError where `voxels` `(I, J, K)` hold nothing, NaN or infinity, or a single value throughout."""
    if voxels.size == 0:
        raise VolumeError(where, f"expected voxels, found none (shape {voxels.shape}); leave it out")
    lowest, highest = voxels.min(), voxels.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise VolumeError(where, f"expected finite voxels, found {bad} that are NaN or infinite; mend or leave it out")
    if lowest == highest:
        raise VolumeError(where, f"expected an image, found the value {lowest:g} in every voxel; leave it out")


def _read_voxels(path: Path, header: Header) -> NDArray[np.float32]:
    """Return a file's voxels in the header's shape, float32 with slope and intercept applied."""
    try:
        if header.end_bytes is None:
            image: Any = header.kind.from_filename(path)
            # Float32 from the start: get_fdata's float64 would take twice the memory.
            return image.get_fdata(dtype=np.float32, caching="unchanged").reshape(header.shape)
        if is_read_whole(path, header):
            return decode_voxels(BytesIO(read_content(path, header.end_bytes)), header)
        return decode_voxels(path, header)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def is_read_whole(path: Path, header: Header) -> bool:
    """Return whether a file's content is read into memory; the voxels of other files are mapped."""
    return is_compressed(path) or header.kind is MGHImage


def decode_voxels(content: BytesIO | Path, header: Header) -> NDArray[np.float32]:
    """Return the voxels of a NIfTI or MGH file without parsing its header again.

    Args:
        content: the file's content from its start to the last voxel, or an uncompressed file.
        header: the file's.

    Returns:
        `header.shape` float32 with slope and intercept applied.

    Raises:
        OSError, ValueError, OverflowError, MemoryError: the content is too short, or more than the machine can hold.
    """
    spec = (header.shape, header.dtype, header.start_bytes, header.slope, header.intercept)
    # Float32 from the start: float64, the proxy's default, would take twice the memory.
    return np.asanyarray(ArrayProxy(content, spec), dtype=np.float32)
