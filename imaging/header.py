"""Read the header of a volume or slice file, without its voxels."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.analyze import AnalyzeHeader
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.nifti1 import Nifti1Pair
from nibabel.nifti2 import Nifti2Pair
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError, SpatialImage

from upfield.common.errors import RunError, VolumeError
from upfield.imaging.affine import assumed_affine, spacing_of
from upfield.imaging.compressed_files import DAMAGED, GZIP_MAGIC, Trace, is_compressed, read_start
from upfield.imaging.formats.file_header import HEADER_BYTES, Header, VoxelLayout, without_trailing_ones
from upfield.imaging.formats.header_findings import header_findings
from upfield.imaging.formats.mgh_fields import MGH_VERSION, parse_mgh, scanner_space
from upfield.imaging.formats.nifti_fields import is_nifti1, is_nifti2, parse_nifti

UNREADABLE = (
    *DAMAGED,
    ImageFileError,
    HeaderDataError,
    MGHError,
    ValueError,
    # The header has a data type code that the format does not define.
    KeyError,
    # A damaged header can state more voxels than a machine can count or hold.
    OverflowError,
    MemoryError,
)
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
OURS = (".nii", ".nii.gz", ".mgh", ".mgz")
PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")
# 4 GiB as float32. A whole head at 0.25 mm has 0.8 billion voxels.
MAX_VOXELS, MAX_ITEM_BYTES = 2**30, 8

# nibabel logs each correction of a header to stderr without the file's name. What matters is a finding of ours.
nibabel_logger.setLevel(logging.CRITICAL)


def read_header(path: Path, orientation: str | None = None) -> Header:
    """Read the header of a volume or slice file.

    Args:
        path: `.nii`, `.nii.gz`, `.mgh`, `.mgz`, or anything else that nibabel reads.
        orientation: axis codes, such as `RAS`, to assume if the file does not state the directions of its axes.

    Raises:
        VolumeError: the file is missing or unreadable, its voxels are not real numbers, or there are none or too many.
    """
    return read_header_and_trace(path, orientation)[0]


def read_header_and_trace(path: Path, orientation: str | None = None) -> tuple[Header, Trace | None]:
    """Read the header of a volume or slice file and the trace of its content, opening the file once.

    Args:
        path: as for `read_header`.
        orientation: as for `read_header`.

    Returns:
        The header and the trace. The trace is None for formats that nibabel reads, because they may have two files.

    Raises:
        VolumeError: as for `read_header`.
    """
    expect_file(path)
    try:
        if is_ours(path):
            start, trace = read_start(path, HEADER_BYTES)
            return parse_header(path, start, orientation), trace
        with np.errstate(all="ignore"):
            return _expect_voxels(path, _read_other(path, orientation)), None
    except VolumeError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def expect_file(path: Path) -> None:
    """Raise VolumeError if `path` is not a file."""
    if not path.is_file():
        raise VolumeError(
            str(path),
            f"{'this is a folder, not a file' if path.is_dir() else 'there is no such file'}. Check the path.",
        )


def parse_header(path: Path, start: bytes, orientation: str | None = None) -> Header:
    """Parse the header of a NIfTI or MGH file.

    Args:
        path: path of the file. The file is not read, but the suffix decides between NIfTI and MGH.
        start: the first `HEADER_BYTES` of the file's uncompressed content.
        orientation: as in `read_header`.

    Raises:
        VolumeError: the bytes are not a header, the voxels are not real numbers, or there are none or too many.
    """
    try:
        # A damaged affine may overflow. Code that uses it checks whether it is finite.
        with np.errstate(all="ignore"):
            header = _parse(path, start, orientation)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return _expect_voxels(path, header)


def _expect_voxels(path: Path, header: Header) -> Header:
    dtype = header.layout.dtype
    # Machines store real numbers of 128 bits in different ways.
    if dtype.kind not in "iufb" or dtype.itemsize > MAX_ITEM_BYTES:
        dtype = dtype.newbyteorder("=")
        raise VolumeError(str(path), f"expected real voxels, found type {dtype}. Convert the file first.")
    if min(header.shape, default=0) < 1:
        raise VolumeError(str(path), f"the file holds no voxels (shape {header.shape}). Leave it out.")
    if prod(header.shape) > MAX_VOXELS:
        raise VolumeError(
            str(path),
            f"expected at most {MAX_VOXELS} voxels, found shape {header.shape}. Copy the file again or "
            "leave it out, because its header may be damaged.",
        )
    return header


def files_of(path: Path) -> list[Path]:
    """Return all files of the volume that `path` names. Some formats keep header and voxels in two files.

    Raises:
        VolumeError: nibabel cannot read the file.
    """
    if is_ours(path):
        return [path]
    if (pair := _pair_of(path)) is not None:
        return sorted(pair)
    try:
        with quiet_nibabel():
            image: Any = nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    files = sorted({Path(holder.filename) for holder in image.file_map.values() if holder.filename})
    return [file for file in files if file.is_file()]


def unreadable(path: Path, error: Exception) -> VolumeError:
    """Return the error for a file that nibabel, gzip or the system could not read. Its `problem` omits the file name.

    Raises:
        RunError: the cause is the machine, not the file.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE):
        raise RunError(
            f"{path}: the file cannot be read: {error or 'no memory left'}. Fix that and run the same command again."
        ) from error
    return VolumeError(str(path), _reason(path, error))


def cut_off(path: Path, end_bytes: int) -> VolumeError:
    """Return the error for a file that ends before its last voxel."""
    return VolumeError(str(path), f"the file is cut off or damaged: it should have {end_bytes} bytes. Copy it again.")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"the system cannot read this file ({error.strerror}). Fix that or leave the file out."
    start = _start_of(path)
    if not start:
        return "the file is empty. Copy it again."
    if start.startswith(b"version https://git-lfs"):
        return "this text only points to the real file (Git LFS). Fetch the real file."
    if start.startswith(GZIP_MAGIC) and not is_compressed(path):
        return "the file is compressed, but its name does not say so. Rename it to end in .nii.gz or .mgz."
    if is_compressed(path) and (is_nifti1(start) or is_nifti2(start) or start.startswith(MGH_VERSION)):
        return "the file is not compressed, but its name says so. Rename it to end in .nii or .mgh."
    text = str(error).replace(str(path), "the file").replace(path.name, "the file")
    # The problem may be published, so no part of a path may remain in it.
    text = "" if "/" in text or path.name.split(".")[0] in text else f": {text}"
    return f"this is not a readable NIfTI file ({type(error).__name__}{text}). Copy it again or leave it out."


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(348)


def is_ours(path: Path) -> bool:
    """Return whether this package reads a file itself, because its name is that of a NIfTI or MGH file."""
    return path.name.lower().endswith(OURS)


def _parse(path: Path, start: bytes, orientation: str | None) -> Header:
    if start.startswith(MGH_VERSION) and path.name.lower().endswith((".mgh", ".mgz")):
        return parse_mgh(start, orientation)
    if is_nifti1(start) or is_nifti2(start):
        return parse_nifti(start, orientation)
    raise ImageFileError(f"{len(start)} bytes that are not a NIfTI or MGH header")


def _read_other(path: Path, orientation: str | None) -> Header:
    """Read the header of a NIfTI pair, or of another format with nibabel."""
    if (pair := _pair_of(path)) is not None:
        with Opener(str(pair[0])) as file:
            start = file.read(HEADER_BYTES)
        if is_nifti1(start) or is_nifti2(start):
            return parse_nifti(start, orientation, Nifti1Pair if is_nifti1(start) else Nifti2Pair, pair[1])
    with quiet_nibabel():
        image: Any = nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
    if not isinstance(image, SpatialImage):
        raise VolumeError(str(path), f"expected a volume, found {type(image).__name__}. Convert the file first.")
    if image.affine is None:
        raise VolumeError(str(path), "the header has no affine. Fix the header.")
    shape = without_trailing_ones(tuple(map(int, image.shape)))
    affine = np.asarray(image.affine, dtype=np.float64)
    # Programs interpret the axes of Analyze files in different ways. nibabel's SPM classes derive from Analyze.
    oriented = not isinstance(image.header, AnalyzeHeader)
    if orientation and not oriented:
        affine = assumed_affine(shape, spacing_of(affine), orientation)
    return Header(
        layout=VoxelLayout(type(image), shape, image.get_data_dtype()),
        affine=affine,
        is_oriented=oriented or orientation is not None,
        is_placed=oriented,
        has_spacing=(True, True, True),
        **scanner_space(affine, oriented),
    )


def _pair_of(path: Path) -> tuple[Path, Path] | None:
    """Return the files of header and voxels if a name is that of a pair, otherwise None."""
    if not path.name.lower().endswith(PAIRS):
        return None
    files = Nifti1Pair.filespec_to_file_map(str(path))
    header, voxels = Path(str(files["header"].filename)), Path(str(files["image"].filename))
    return (header, voxels) if header.is_file() and voxels.is_file() else None


@contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Hide the warnings of nibabel, which do not name the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def expect_three_dimensions(header: Header, path: Path) -> None:
    """Raise VolumeError if a file does not hold exactly one 3-D volume."""
    if len(header.shape) != 3:
        raise VolumeError(
            str(path),
            f"expected 3 dimensions, found {len(header.shape)} (shape {header.shape}). Extract one volume first.",
        )


def expect_usable_volume(header: Header, path: Path) -> None:
    """Raise VolumeError if a file does not hold one 3-D volume, or if its header lacks what every reader needs."""
    expect_three_dimensions(header, path)
    if min(header.shape) < 2:
        raise VolumeError(
            str(path),
            f"expected at least 2 voxels along each axis, found shape {header.shape}. Leave the file out.",
        )
    for finding in header_findings(header):
        if finding.is_unusable:
            raise VolumeError(str(path), finding.refusal)
