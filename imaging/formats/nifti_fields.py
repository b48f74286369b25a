"""Read the fields of a NIfTI-1 or NIfTI-2 header, each in one place.

Fields are treated as nibabel treats them, or as nifti1_io.c and thus SimpleITK does if nibabel gives up. Where the two
disagree about the voxels or their place, the header has a doubt. tests/imaging/test_header_fields.py has the table.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from upfield.imaging.affine import angles_deg, assumed_affine, size_text, spacing_of
from upfield.imaging.formats.file_header import FIX, Header, HeaderFinding, VoxelLayout, doubt, without_trailing_ones

NIFTI1_MAGIC, NIFTI2_MAGIC = b"n+1\0", b"n+2\0"
PAIR1_MAGIC, PAIR2_MAGIC = b"ni1\0", b"ni2\0"
HEADER1_BYTES, HEADER2_BYTES = 348, 540
NIFTI_FALLBACK = "LAS"  # nibabel's choice for files that do not state the directions of their axes
LISTED_CODES = range(1, 6)  # nifti1.h, NIFTI_XFORM_*
TIME_UNIT_BITS = 0b111000
SPATIAL_UNITS: dict[int, Literal["m", "mm", "um"]] = {1: "m", 2: "mm", 3: "um"}  # nifti1.h, NIFTI_UNITS_*
EOL_CHECK = (13, 10, 26, 10)
# b2 + c2 + d2 of a rotation by half a turn is 1. Rounding, also of decimal text, makes it larger by less than this.
QUATERNION_SLACK = 1e-3
# nifti1.h, NIFTI_INTENT_*: codes of voxels that are not intensities. Statistics are 2 to 24.
LABELS, NOT_IMAGES = (1002, 1003), (*range(2, 25), *range(1004, 1011), *range(2002, 2019))


def is_nifti1(start: bytes) -> bool:
    """Return whether a file's first bytes are a NIfTI-1 header."""
    return start[344:348] in (NIFTI1_MAGIC, PAIR1_MAGIC)


def is_nifti2(start: bytes) -> bool:
    """Return whether a file's first bytes are a NIfTI-2 header."""
    return start[4:8] in (NIFTI2_MAGIC, PAIR2_MAGIC)


def parse_nifti(
    start: bytes, orientation: str | None, kind: type[SpatialImage] | None = None, voxel_file: Path | None = None
) -> Header:
    """Parse a NIfTI header.

    Args:
        start: the header's bytes.
        orientation: axis codes to assume if the header does not state the directions of the axes.
        kind: nibabel's class for the format; by default, the class of files that hold both header and voxels.
        voxel_file: the file that holds the voxels, for pairs of files.

    Raises:
        HeaderDataError, ValueError, KeyError: the header is damaged.
    """
    fields: Any
    if is_nifti1(start):
        fields, kind = Nifti1Header(start[:HEADER1_BYTES], check=False), kind or Nifti1Image
    else:
        fields, kind = Nifti2Header(start[:HEADER2_BYTES], check=False), kind or Nifti2Image
        if tuple(fields["eol_check"]) not in (EOL_CHECK, (0, 0, 0, 0)):
            raise HeaderDataError("the end-of-line check of NIfTI-2 is wrong, so line ends were converted")
    doubts: list[HeaderFinding] = []
    shape = _shape(fields)
    spacing_mm, has_spacing = _spacing(fields)
    affine, forms = _forms(fields, shape, spacing_mm, has_spacing, orientation, doubts)
    slope, intercept = _scaling(fields, doubts)
    _check_intent(int(fields["intent_code"]), doubts)
    is_placed = bool(forms["sform_code"] or forms["qform_code"])
    offset = _offset(fields, voxel_file is None, doubts)
    units = int(fields["xyzt_units"])
    return Header(
        layout=VoxelLayout(kind, shape, _data_type(fields), offset, slope, intercept, voxel_file),
        affine=affine,
        is_oriented=is_placed or orientation is not None,
        is_placed=is_placed,
        has_spacing=has_spacing if not forms["sform_code"] else (True, True, True),
        unit=SPATIAL_UNITS.get(units & 7, "mm"),
        time_unit=units & TIME_UNIT_BITS,
        descrip=bytes(fields["descrip"]).rstrip(b"\0 "),
        doubts=tuple(doubts),
        **forms,
    )


def _shape(fields: Any) -> tuple[int, ...]:
    """Return the voxels per dimension. Sizes below 1 beyond the third dimension count as 1, as in nifti1_io.c."""
    num_dimensions = int(fields["dim"][0])
    if not 1 <= num_dimensions <= 7:
        raise HeaderDataError("the number of dimensions is not 1 to 7 in either byte order")
    sizes = tuple(map(int, fields.get_data_shape()))
    return without_trailing_ones((*sizes[:3], *(max(size, 1) for size in sizes[3:])))


def _data_type(fields: Any) -> np.dtype[Any]:
    code = int(fields["datatype"])
    try:
        dtype = fields._data_type_codes.dtype[code]
    except KeyError as error:
        raise HeaderDataError(f"data code {code} not recognized") from error
    if dtype.itemsize == 0:
        raise HeaderDataError(f"data code {code} not supported")
    return dtype.newbyteorder(fields.endianness)


def _offset(fields: Any, is_single: bool, doubts: list[HeaderFinding]) -> int:
    """Return the offset of the first voxel."""
    stated = float(fields["vox_offset"])
    if not np.isfinite(stated) or stated < 0:
        raise HeaderDataError(f"vox_offset {stated:g} is not a position in a file")
    offset, least = int(fields["vox_offset"]), int(fields.single_vox_offset)
    if not is_single:
        return offset
    if bytes(fields["magic"])[:2] == b"ni" and offset < least:
        raise HeaderDataError("its magic says that the voxels are in another file")
    if offset == 0:
        taken = f"{least} is used, where voxels start after a header without extensions"
        doubts.append(doubt("the header does not say where the voxels start (vox_offset 0)", taken, FIX))
        return least
    if offset < least:
        raise HeaderDataError(f"vox offset {offset} too low for single file, voxels start at {least} or later")
    return offset


def _scaling(fields: Any, doubts: list[HeaderFinding]) -> tuple[float, float]:
    slope, intercept = fields.get_slope_inter()
    if slope is not None and slope < 0:
        inverted = "dark and bright are exchanged relative to the stored values, as the standard requires"
        doubts.append(doubt(f"the slope of the values is negative (scl_slope {slope:g})", inverted, FIX))
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _check_intent(code: int, doubts: list[HeaderFinding]) -> None:
    if code in LABELS or code in NOT_IMAGES:
        what = "labels" if code in LABELS else "not intensities"
        remedy = "Leave the file out if it is not a scan."
        doubts.append(doubt(f"the header says that the voxels are {what} (intent_code {code})", "", remedy))


def _spacing(fields: Any) -> tuple[NDArray[np.float64], tuple[bool, bool, bool]]:
    """Return the voxel sizes `(3,)`, 1 mm if there is none, and whether the header states each."""
    stated_mm = np.abs(np.array(fields["pixdim"][1:4], dtype=np.float64))
    first, second, third = np.isfinite(stated_mm) & (stated_mm > 0)
    is_stated = bool(first), bool(second), bool(third)
    return np.where(is_stated, stated_mm, 1.0), is_stated


def _forms(
    fields: Any,
    shape: tuple[int, ...],
    spacing_mm: NDArray[np.float64],
    has_spacing: tuple[bool, bool, bool],
    orientation: str | None,
    doubts: list[HeaderFinding],
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Return the affine that counts, and the fields of `Header` that describe sform and qform."""
    sform_code, qform_code = (_code(fields, name, doubts) for name in ("sform_code", "qform_code"))
    if not (sform_code or qform_code):
        _check_signs(fields, doubts)
        affine = assumed_affine(shape, spacing_mm, orientation or NIFTI_FALLBACK)
        return affine, {"sform_code": 0, "qform_code": 0, "qform": None}
    rotation = _rotation(fields)
    if not sform_code:
        _check_signs(fields, doubts)
        if rotation is None:
            raise HeaderDataError("the quaternion of the qform is not a rotation, and there is no sform")
        qform = _qform(fields, rotation, spacing_mm)
        return qform, {"sform_code": 0, "qform_code": qform_code, "qform": qform}
    sform = _sform(fields)
    if not qform_code:
        _compare_spacing(sform, fields, spacing_mm, has_spacing, sform_code, doubts)
        return sform, {"sform_code": sform_code, "qform_code": 0, "qform": None}
    differ_deg, apart_mm, qform = float("nan"), 0.0, None
    if rotation is not None and np.isfinite(stated := _qform(fields, rotation, spacing_mm)).all():
        qform = stated
        differ_deg = _largest(angles_deg(sform[:3, :3], qform[:3, :3]))
        if sform_code == qform_code:
            apart_mm = _apart_mm(sform, qform, shape)
    if not all(has_spacing):
        qform = None
    return sform, {
        "sform_code": sform_code,
        "qform_code": qform_code if qform is not None else 0,
        "qform": qform,
        "forms_differ_deg": differ_deg,
        "forms_apart_mm": apart_mm,
    }


def _code(fields: Any, name: str, doubts: list[HeaderFinding]) -> int:
    """Return the code of a form, or 0 if NIfTI does not list it, as in nibabel."""
    code = int(fields[name])
    if code in LISTED_CODES or code == 0:
        return code
    doubts.append(doubt(f"NIfTI does not list the code of a form (`{name}` {code})", "that form is ignored", FIX))
    return 0


def _check_signs(fields: Any, doubts: list[HeaderFinding]) -> None:
    """Report negative voxel sizes and an odd qfac, in headers whose qform or voxel sizes count."""
    if (np.array(fields["pixdim"][1:4]) < 0).any():
        doubts.append(doubt("a voxel size is negative (pixdim)", "its absolute value is used", FIX))
    qfac = float(fields["pixdim"][0])
    if qfac < 0 and qfac != -1:
        doubts.append(doubt(f"qfac is neither 1 nor -1 (pixdim[0] {qfac:g})", "-1 is used", FIX))


def _rotation(fields: Any) -> NDArray[np.float64] | None:
    """Return the rotation `(3, 3)` of the qform, or None if the quaternion is not a rotation."""
    b, c, d = (float(fields[f"quatern_{name}"]) for name in "bcd")
    length = b * b + c * c + d * d
    if not length <= 1 + QUATERNION_SLACK:  # NaN too
        return None
    # If rounding has made the sum too large, the rotation is half a turn, as in nifti1_io.c. quat2mat normalises.
    return np.asarray(quat2mat((np.sqrt(max(1 - length, 0.0)), b, c, d)), dtype=np.float64)


def _qform(fields: Any, rotation: NDArray[np.float64], spacing_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    qfac = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing_mm * (1, 1, qfac)
    affine[:3, 3] = [float(fields[f"qoffset_{name}"]) for name in "xyz"]
    return affine


def _sform(fields: Any) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3] = [np.asarray(fields[f"srow_{name}"], dtype=np.float64) for name in "xyz"]
    return affine


def _apart_mm(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance between the places that two affines give to a corner of the volume."""
    sizes = np.array([*shape, 1, 1][:3])
    corners = np.stack(np.meshgrid(*([0, size - 1] for size in sizes), indexing="ij"), -1).reshape(-1, 3)
    difference = first - second
    return _largest(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1))


def _largest(values: NDArray[np.float64]) -> float:
    # NaN is ignored here. If the sform is not finite or has an axis of length 0, the affine is reported.
    return float(np.nanmax(values, initial=0.0))


def _compare_spacing(
    sform: NDArray[np.float64],
    fields: Any,
    spacing_mm: NDArray[np.float64],
    has_spacing: tuple[bool, bool, bool],
    code: int,
    doubts: list[HeaderFinding],
) -> None:
    """Report an sform to the scanner's space whose voxel sizes are not those of pixdim, because programs disagree."""
    own_mm = spacing_of(sform)
    if code != 1 or not all(has_spacing) or not np.isfinite(own_mm).all():
        return
    if (np.abs(own_mm - spacing_mm) > 0.02 * spacing_mm).any():
        sizes = size_text(own_mm), size_text(spacing_mm)
        message = f"the voxel sizes of the sform ({sizes[0]}) are not those of pixdim ({sizes[1]})"
        doubts.append(doubt(message, "those of the sform are used", FIX))
