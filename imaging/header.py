"""Read the header of a volume or slice file, without its voxels."""

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.analyze import AnalyzeHeader
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError, MGHHeader, MGHImage
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from upfield.common.errors import RunError, VolumeError
from upfield.imaging.affine import angles_deg, assumed_affine, spacing_of
from upfield.imaging.compressed_files import DAMAGED, Trace, read_start

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
NIFTI1_MAGIC, NIFTI2_MAGIC = b"n+1\0", b"n+2\0"
MGH_VERSION = b"\0\0\0\1"
HEADER_BYTES = 540  # NIfTI-2 has the longest header.
# 4 GiB as float32. A whole head at 0.25 mm has 0.8 billion voxels.
MAX_VOXELS = 2**30
SCANNER = 1  # nifti1.h, NIFTI_XFORM_SCANNER_ANAT
TIME_UNIT_BITS = 0b111000
SPATIAL_UNITS: dict[int, Literal["m", "mm", "um"]] = {1: "m", 2: "mm", 3: "um"}  # nifti1.h, NIFTI_UNITS_*
# Axis codes assumed for files that do not state any: nibabel's for NIfTI, FreeSurfer's for MGH.
NIFTI_FALLBACK, MGH_FALLBACK = "LAS", "LIA"

# nibabel logs each correction of a header, which would be one line per file in a large cohort.
_silent = logging.Logger("silent")
_silent.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class VoxelLayout:
    """The part of a header that is needed to read the voxels. The slices of a stack usually share one layout."""

    kind: type[SpatialImage]
    """nibabel's class for the format."""
    shape: tuple[int, ...]
    """Voxels per dimension; trailing dimensions of size 1 beyond the third are dropped."""
    dtype: np.dtype[Any]
    """Data type of the stored voxels, which must be real."""
    offset_bytes: int | None = None
    """Offset of the first voxel in the uncompressed file; None for formats that keep voxels in another file."""
    slope: float = 1.0
    """Factor by which stored values are multiplied."""
    intercept: float = 0.0
    """Value that is added after the multiplication."""

    @property
    def end_bytes(self) -> int | None:
        """Offset of the voxels' end in the uncompressed file; None for formats that keep voxels in another file."""
        return None if self.offset_bytes is None else self.offset_bytes + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """The header of one volume or slice file."""

    layout: VoxelLayout
    """How the file stores its voxels."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm; it may not be invertible or finite."""
    is_oriented: bool
    """Whether the file or the caller states the directions of the axes."""
    is_placed: bool
    """Whether the file states the position of its voxels in the scanner."""
    has_spacing: tuple[bool, bool, bool]
    """Whether the file states the voxel size along each axis. If not, 1 mm is assumed."""
    forms_differ_deg: float
    """Largest angle between the axes of sform and qform: 0 unless both are set, NaN if the qform is not a rotation."""
    unit: Literal["m", "mm", "um"]
    """Unit of length in the file; `mm` if the file does not state one."""
    sform_code: int = 0
    """Code of the space that the sform maps to (nifti1.h, NIFTI_XFORM_*), as stored; 0 if there is no sform."""
    qform_code: int = 0
    """Code of the space that the qform maps to, as stored; 0 if there is no usable qform."""
    qform: NDArray[np.float64] | None = None
    """`(4, 4)`, voxel index -> mm in the qform's space; None if there is no usable qform."""
    time_unit: int = 0
    """The bits of `xyzt_units` that state the unit of time."""
    descrip: bytes = b""
    """The header's description, without padding."""

    @property
    def kind(self) -> type[SpatialImage]:
        """nibabel's class for the format."""
        return self.layout.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per dimension; trailing dimensions of size 1 beyond the third are dropped."""
        return self.layout.shape

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis, `(3,)`, in mm."""
        return spacing_of(self.affine)


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
    if (dtype := header.layout.dtype).kind not in "iufb":
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
    try:
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


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"the system cannot read this file ({error.strerror}). Fix that or leave the file out."
    start = _start_of(path)
    if not start:
        return "the file is empty. Copy it again."
    if start.startswith(b"version https://git-lfs"):
        return "this text only points to the real file (Git LFS). Fetch the real file."
    text = str(error).replace(str(path), "the file").replace(path.name, "the file")
    # The problem may be published, so no part of a path may remain in it.
    text = "" if "/" in text or path.name.split(".")[0] in text else f": {text}"
    return f"this is not a readable NIfTI file ({type(error).__name__}{text}). Copy it again or leave it out."


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def is_ours(path: Path) -> bool:
    """Return whether this package reads a file itself, because its name is that of a NIfTI or MGH file."""
    return path.name.lower().endswith(OURS)


def _parse(path: Path, start: bytes, orientation: str | None) -> Header:
    if start.startswith(MGH_VERSION) and path.name.lower().endswith((".mgh", ".mgz")):
        return _mgh(start, orientation)
    if start[344:348] == NIFTI1_MAGIC:
        return _nifti(Nifti1Image, Nifti1Header(start[:348], check=False), orientation)
    if start[4:8] == NIFTI2_MAGIC:
        return _nifti(Nifti2Image, Nifti2Header(start, check=False), orientation)
    raise ImageFileError(f"{len(start)} bytes that are not a NIfTI or MGH header")


def _read_other(path: Path, orientation: str | None) -> Header:
    """Read a header with nibabel, for formats with two files and for other formats."""
    image: Any = nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
    if not isinstance(image, SpatialImage):
        raise VolumeError(str(path), f"expected a volume, found {type(image).__name__}. Convert the file first.")
    if isinstance(image.header, Nifti1Header):
        return _nifti(type(image), image.header, orientation)
    if image.affine is None:
        raise VolumeError(str(path), "the header has no affine. Fix the header.")
    shape = _without_trailing_ones(image.shape)
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
        forms_differ_deg=0.0,
        unit="mm",
        **_one_space(affine, oriented),
    )


def _nifti(kind: type[SpatialImage], header: Any, orientation: str | None) -> Header:
    # Voxel sizes are read before `check_fix` replaces zeros by ones, codes after it replaced unlisted ones by 0.
    stated_mm = np.array(header["pixdim"][1:4], dtype=np.float64)
    header.check_fix(logger=_silent)
    spaces = _spaces(header)
    slope, intercept = header.get_slope_inter()
    shape = _without_trailing_ones(header.get_data_shape())
    in_x, in_y, in_z = np.isfinite(stated_mm) & (stated_mm != 0)
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if has_sform or has_qform:
        affine = header.get_best_affine()
    else:
        affine = assumed_affine(shape, header["pixdim"][1:4], orientation or NIFTI_FALLBACK)
    layout = VoxelLayout(
        kind,
        shape,
        header.get_data_dtype(),
        header.get_data_offset() if header.is_single else None,
        1.0 if slope is None else slope,
        0.0 if intercept is None else intercept,
    )
    return Header(
        layout=layout,
        affine=np.asarray(affine, dtype=np.float64),
        is_oriented=has_sform or has_qform or orientation is not None,
        is_placed=has_sform or has_qform,
        has_spacing=(has_sform or bool(in_x), has_sform or bool(in_y), has_sform or bool(in_z)),
        forms_differ_deg=_forms_differ_deg(header) if has_sform and has_qform else 0.0,
        unit=SPATIAL_UNITS.get(int(header["xyzt_units"]) & 7, "mm"),
        time_unit=int(header["xyzt_units"]) & TIME_UNIT_BITS,
        descrip=bytes(header["descrip"]).rstrip(b"\0 "),
        **spaces,
    )


def _spaces(header: Nifti1Header) -> dict[str, Any]:
    """Return the fields of `Header` that describe the sform and qform of a NIfTI header."""
    sform_code, qform_code = max(int(header["sform_code"]), 0), max(int(header["qform_code"]), 0)
    qform = _qform(header) if qform_code else None
    return {"sform_code": sform_code, "qform_code": qform_code if qform is not None else 0, "qform": qform}


def _one_space(affine: NDArray[np.float64], is_placed: bool) -> dict[str, Any]:
    """Return the fields that `_spaces` returns, for a format whose only space is the scanner's."""
    return {"sform_code": SCANNER, "qform_code": SCANNER, "qform": affine} if is_placed else {}


def _qform(header: Nifti1Header) -> NDArray[np.float64] | None:
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    return qform if np.isfinite(qform).all() and abs(np.linalg.det(qform[:3, :3])) > 0 else None


def _mgh(start: bytes, orientation: str | None) -> Header:
    # If the flag that marks the geometry as valid is 0, nibabel overwrites the flag and the spacing. Both are therefore
    # read from the bytes, at offsets 28 and 30.
    is_good = int.from_bytes(start[28:30], "big") == 1
    spacing_mm = np.frombuffer(start, ">f4", 3, offset=30).astype(np.float64)
    header: Any = MGHHeader(start[: MGHHeader.template_dtype.itemsize])
    shape = _without_trailing_ones(header.get_data_shape())
    has_spacing = bool(np.isfinite(spacing_mm).all() and (spacing_mm > 0).all())
    affine = header.get_affine()
    if not is_good:
        affine = assumed_affine(shape, spacing_mm if has_spacing else np.ones(3), orientation or MGH_FALLBACK)
    return Header(
        layout=VoxelLayout(MGHImage, shape, header.get_data_dtype(), header.get_data_offset()),
        affine=np.asarray(affine, dtype=np.float64),
        is_oriented=is_good or orientation is not None,
        is_placed=is_good,
        has_spacing=(has_spacing, has_spacing, has_spacing),
        forms_differ_deg=0.0,
        unit="mm",
        **_one_space(np.asarray(affine, dtype=np.float64), is_good),
    )


def _without_trailing_ones(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = [int(size) for size in shape]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _forms_differ_deg(header: Any) -> float:
    try:
        angles = angles_deg(header.get_sform()[:3, :3], header.get_qform()[:3, :3])
    except UNREADABLE:
        return float("nan")
    # NaN is ignored here. If an axis of the sform has length 0, a later check reports a bad affine.
    return float(np.nanmax(angles, initial=0.0))


def expect_three_dimensions(header: Header, path: Path) -> None:
    """Raise VolumeError if a file does not hold exactly one 3-D volume."""
    if len(header.shape) != 3:
        raise VolumeError(
            str(path),
            f"expected 3 dimensions, found {len(header.shape)} (shape {header.shape}). Extract one volume first.",
        )
