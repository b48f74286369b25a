"""Every field of NIfTI-1, NIfTI-2 and MGH headers: a value, what is done with it, and why.

Each row names a field, a value, and how the file is treated. `read` means that the file is read and nothing is said.
`doubt` means that shard and enhance read it and both report a doubt. `strict` means that shard refuses it and enhance
reports a doubt. `refused` means that both refuse it. Rows with a reference compare voxels and affine with nibabel or
SimpleITK, which reads the same file; rows without one say why.
"""

import re
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from header_files import (
    AFFINE,
    DOUBT,
    MGH,
    MGH_DTYPE,
    N2,
    NONE,
    QUATERNION,
    READ,
    REFUSED,
    STRICT,
    VOXELS,
    Q,
    Row,
    S,
    enhance_says,
    normalised,
    reference_of,
    row,
    shard_says,
    write,
)

from upfield.common.errors import VolumeError
from upfield.imaging.formats.file_header import Header
from upfield.imaging.header import read_header
from upfield.imaging.volume import read_volume

UNREADABLE = "this is not a readable NIfTI file"
NIFTI = [
    Row("plain", {}, READ, "the fields as nibabel writes them"),
    row("sizeof_hdr", 0, READ, "the magic identifies the file; nibabel and SimpleITK read it"),
    row("sizeof_hdr", 540, READ, "the magic of NIfTI-1 decides", reference="plain"),
    row("data_type", b"unused", READ, "unused field of Analyze"),
    row("db_name", b"Jane", READ, "unused; it is not copied, because it may name a person"),
    row("extents", 16384, READ, "unused"),
    row("session_error", 3, READ, "unused"),
    row("regular", ord("x"), READ, "unused"),
    row("dim_info", 57, READ, "directions of encoding do not change voxels"),
    row("dim_info", 255, READ, "as above, with directions that do not exist"),
    row("dim0", 0, REFUSED, "no dimension: nibabel reads an empty image, SimpleITK refuses", UNREADABLE),
    row("dim0", 8, REFUSED, "in no byte order 1 to 7", UNREADABLE),
    row("dim0", -3, REFUSED, "in no byte order 1 to 7", UNREADABLE),
    row("dim", [3, 10, 9, 8, 5, 6, 7, 8], READ, "dimensions beyond dim[0] do not count"),
    row("dim", [7, 10, 9, 8, 1, 1, 1, 1], READ, "dimensions of size 1 do not count"),
    row("dim", [4, 10, 9, 8, 0, 1, 1, 1], READ, "nifti1_io.c takes 1 for sizes below 1", reference="sitk"),
    row("dim", [5, 10, 9, 8, -1, 0, 1, 1], READ, "nifti1_io.c takes 1 for sizes below 1", reference="sitk"),
    row("dim", [3, 10, 0, 8, 1, 1, 1, 1], REFUSED, "there is no voxel", "the file holds no voxels"),
    row("dim", [3, 10, -9, 8, 1, 1, 1, 1], REFUSED, "int16 overflow of a writer", "the file holds no voxels"),
    row("dim", [3, -1, 1, 1, 1, 1, 1, 1], REFUSED, "FreeSurfer's vector: glmin is 0", UNREADABLE),
    Row(
        "dim=-1, glmin",
        {"dim": [3, -1, 1, 1, 1, 1, 1, 1], "glmin": 720},
        REFUSED,
        "a surface of FreeSurfer",
        "at least 2 voxels along each axis",
    ),
    row("dim", [3, 27307, 1, 6, 1, 1, 1, 1], REFUSED, "163842 vertices of FreeSurfer", "cut off|2 voxels along"),
    row("dim", [4, 10, 9, 4, 2, 1, 1, 1], REFUSED, "a series", "expected 3 dimensions, found 4"),
    row("dim", [5, 5, 4, 4, 1, 3, 1, 1], REFUSED, "a vector per voxel", "expected 3 dimensions, found 5"),
    row("dim", [2, 10, 72, 1, 1, 1, 1, 1], REFUSED, "a slice", "expected 3 dimensions, found 2"),
    row("dim", [3, 720, 1, 1, 1, 1, 1, 1], REFUSED, "a line", "at least 2 voxels along each axis"),
    row("dim", [3, 30000, 30000, 30000, 1, 1, 1, 1], REFUSED, "more than memory holds", "at most 1073741824 voxels"),
    row("intent_p1", np.nan, READ, "parameters of an intent do not change voxels"),
    row("intent_p2", 1, READ, "as above"),
    row("intent_p3", 1, READ, "as above"),
    row("intent_code", 1001, READ, "an estimate, as some programs mark intensities"),
    row("intent_code", 1011, READ, "without a dimension"),
    row("intent_code", 32000, READ, "not in the list, so it says nothing"),
    row("intent_code", -5, READ, "not in the list, so it says nothing"),
    row("intent_code", 1002, DOUBT, "labels are no intensities", r"the voxels are labels \(intent_code 1002\)"),
    row("intent_code", 5, DOUBT, "a statistic is no intensity", r"not intensities \(intent_code 5\)"),
    row("intent_code", 1007, DOUBT, "a vector is no intensity", r"not intensities \(intent_code 1007\)"),
    row("datatype", 0, REFUSED, "unknown", UNREADABLE),
    row("datatype", 1, REFUSED, "single bits; nibabel and SimpleITK refuse them", UNREADABLE),
    row("datatype", 999, REFUSED, "not in the list", "data code 999 not recognized"),
    row("datatype", 32, REFUSED, "complex", "expected real voxels, found type complex64"),
    row("datatype", 128, REFUSED, "colours", "expected real voxels"),
    row("datatype", 2304, REFUSED, "colours", "expected real voxels"),
    row("datatype", 1536, REFUSED, "machines store 128 bits in different ways", "not supported|expected real voxels"),
    row("bitpix", 7, READ, "nibabel and SimpleITK take the size of the data type"),
    row("slice_start", -4, READ, "the times of slices do not change voxels"),
    row("slice_end", 999, READ, "as above"),
    row("slice_code", 77, READ, "as above"),
    row("slice_duration", np.nan, READ, "as above"),
    row("toffset", np.inf, READ, "as above"),
    row("pixdim0", 0, READ, "nifti1.h takes 1", forms=Q),
    row("pixdim0", 4, READ, "nibabel and nifti1_io.c take 1", forms=Q),
    row("pixdim0", np.nan, READ, "nibabel and nifti1_io.c take 1", forms=Q),
    row("pixdim0", -1, READ, "the third axis is flipped", forms=Q),
    row("pixdim0", -2, DOUBT, "nibabel takes 1, nifti1_io.c -1", "qfac is neither 1 nor -1", forms=Q, reference="sitk"),
    row("pixdim0", -2, READ, "without a qform, qfac does not count", forms=S),
    row(
        "pixdim", [1, 2, 2.5, 0, 1, 1, 1, 1], REFUSED, "a voxel size is missing", "states no voxel size, or 0", forms=Q
    ),
    row("pixdim", [1, 2, np.nan, 3, 1, 1, 1, 1], REFUSED, "a size is missing", "states no voxel size, or 0", forms=Q),
    row("pixdim", [1, np.inf, 2.5, 3, 1, 1, 1, 1], REFUSED, "a size is missing", "states no voxel size", forms=NONE),
    row("pixdim", [1, 2, 2.5, 0, 1, 1, 1, 1], READ, "the sform has voxel sizes", forms=S),
    row("pixdim", [1, 2, 2.5, 0, 1, 1, 1, 1], READ, "the sform counts, and the qform is left out"),
    row(
        "pixdim",
        [1, -2, 2.5, 3, 1, 1, 1, 1],
        DOUBT,
        "nibabel takes the absolute value",
        "voxel size is negative",
        forms=Q,
    ),
    row("pixdim", [1, -2, 2.5, 3, 1, 1, 1, 1], READ, "the sform has voxel sizes", forms=S),
    row(
        "pixdim",
        [1, 1, 1, 1, 1, 1, 1, 1],
        DOUBT,
        "nibabel takes the sform, SimpleITK pixdim",
        "are not those of pixdim",
        forms=S,
    ),
    row(
        "pixdim",
        [1, 2, 2.5, 13, 1, 1, 1, 1],
        STRICT,
        "larger than any slice",
        "expected voxels of 0.1 to 12 mm",
        forms=Q,
    ),
    row("pixdim", [1, 2, 2.5, 3, np.nan, -1, np.inf, 0], READ, "only three axes count"),
    row(
        "vox_offset",
        0,
        DOUBT,
        "nifti1.h has voxels at 352; nibabel reads the header as voxels",
        "where the voxels start",
        reference="plain",
    ),
    row(
        "vox_offset", 100, REFUSED, "inside the header; nibabel refuses, SimpleITK takes 348", "vox offset 100 too low"
    ),
    row("vox_offset", 348, REFUSED, "nibabel refuses; nifti1.h has 352 at least", "vox offset 348 too low"),
    row("vox_offset", 352.5, READ, "both cut it to 352"),
    row("vox_offset", 1e9, REFUSED, "behind the end of the file", "cut off or damaged"),
    row("vox_offset", -352, REFUSED, "no place in a file", "is not a position in a file"),
    row("vox_offset", np.nan, REFUSED, "no place in a file", "is not a position in a file"),
    row("scl_slope", 0, READ, "nifti1.h: not scaled"),
    row("scl_slope", np.nan, READ, "nibabel: not scaled"),
    row("scl_slope", np.inf, READ, "nibabel: not scaled"),
    row("scl_slope", 1e-40, READ, "float32 loses digits there, so values are scaled", reference=None),
    row("scl_slope", -2, DOUBT, "both read it, but bright is dark", "the slope of the values is negative"),
    Row("scl=(2, 5)", {"scl_slope": 2, "scl_inter": 5}, READ, "slope and intercept"),
    Row("scl=(1, 1e9)", {"scl_slope": 1, "scl_inter": 1e9}, READ, "values are shifted", reference=None),
    Row(
        "scl=(1, nan)",
        {"scl_slope": 1, "scl_inter": np.nan},
        REFUSED,
        "nibabel refuses; SimpleITK takes 0",
        "invalid intercept nan",
    ),
    Row("scl=(0, 5)", {"scl_slope": 0, "scl_inter": 5}, READ, "not scaled, so the intercept does not count"),
    row("xyzt_units", 0, READ, "not stated: mm"),
    row("xyzt_units", 10, READ, "mm and seconds"),
    row("xyzt_units", 5, READ, "not in the list: mm, as in SimpleITK"),
    row("xyzt_units", 255, READ, "not in the list: mm"),
    row("xyzt_units", 1, STRICT, "nibabel ignores metres, SimpleITK converts them", "expected lengths in mm"),
    row("xyzt_units", 3, STRICT, "nibabel ignores micrometres, SimpleITK converts them", "expected lengths in mm"),
    row("cal_max", np.nan, READ, "display only"),
    row("cal_min", 1e30, READ, "display only"),
    row("glmax", 255, READ, "unused"),
    row("glmin", -7, READ, "unused, if dim[1] is not -1"),
    row("descrip", "Größe".encode("latin-1"), READ, "any bytes are kept"),
    row("descrip", b"enhanced by upfield, for research only", DOUBT, "not an original", "has been enhanced already"),
    row("aux_file", b"\xff\xfe/etc", READ, "not read"),
    row("intent_name", b"\xff\xfe", READ, "not read"),
    row("qform_code", 99, DOUBT, "nibabel takes 0", "does not list the code of a form"),
    row("sform_code", 99, DOUBT, "nibabel takes 0, and the qform counts", "does not list the code of a form"),
    row("sform_code", -1, DOUBT, "nibabel takes 0, and the qform counts", "does not list the code of a form"),
    row("sform_code", 5, READ, "a template: listed since 2021, with the qform in the scanner"),
    Row(
        "codes=(99, 99)",
        {"qform_code": 99, "sform_code": 99},
        STRICT,
        "no form is left",
        "does not say which side is left",
    ),
    Row(
        "codes=(0, 0)", {}, STRICT, "nibabel assumes LAS, SimpleITK RAS", "does not say which side is left", forms=NONE
    ),
    Row("quaternion long", QUATERNION, READ, "rounding: half a turn, as in nifti1_io.c", forms=Q, reference="sitk"),
    row(
        "quatern_b", 2, REFUSED, "nibabel refuses; nifti1_io.c normalises anything", "quaternion of the qform", forms=Q
    ),
    row(
        "quatern_b", np.nan, REFUSED, "nibabel's affine is NaN; nifti1_io.c takes 0", "quaternion of the qform", forms=Q
    ),
    row("quatern_c", 2, STRICT, "the sform counts", "the qform is not a rotation"),
    row("quatern_d", np.nan, STRICT, "the sform counts", "the qform is not a rotation"),
    row("qoffset_x", np.nan, REFUSED, "no position", "distinct axes|cannot be inverted", forms=Q),
    row("qoffset_y", np.inf, STRICT, "the sform counts", "the qform is not a rotation"),
    row("qoffset_z", 90, DOUBT, "both name the scanner's space", "sform and qform differ by up to 0 degrees and 60 mm"),
    row("srow_x", [0, 0, 0, 0], REFUSED, "no axes", "distinct axes|cannot be inverted"),
    row("srow_y", [0, np.nan, 0, 0], REFUSED, "no axes", "distinct axes|cannot be inverted"),
    row("srow_z", [0, 1, -3, 30], STRICT, "sheared", "sheared", forms=S),
    row("srow_x", [2, 0, 0, 10], STRICT, "one of the two is mirrored", "their axes differ by up to 180 degrees"),
    row("magic", b"ni1", READ, "nibabel and SimpleITK read it, because voxels follow the header"),
    Row(
        "magic=ni1, offset 0",
        {"magic": b"ni1", "vox_offset": 0},
        REFUSED,
        "the voxels are in another file",
        "voxels are in another file",
    ),
    row("magic", b"n+3", REFUSED, "nibabel refuses", "not a NIfTI or MGH header"),
    row("magic", b"", REFUSED, "Analyze, whose sides nobody knows", "not a NIfTI or MGH header"),
    Row("magic=n+1?", {}, REFUSED, "nibabel refuses", "not a NIfTI or MGH header", raw={347: b"?"}),
    Row("extension flag", {}, READ, "extensions lie before vox_offset and are not read", raw={348: b"\1\1\1\1"}),
]
NIFTI2 = [
    Row("NIfTI-2", {}, READ, "the fields as nibabel writes them", kind=N2),
    row("eol_check", 0, READ, "nibabel reads it", kind=N2),
    row("eol_check", 10, REFUSED, "nibabel refuses: line ends were converted", "end-of-line check", kind=N2),
    row("unused_str", b"\xff", READ, "unused", kind=N2),
    row("vox_offset", 0, DOUBT, "voxels start at 544 at least", "544 is used", kind=N2, reference="plain"),
    row("vox_offset", 540, REFUSED, "inside the header", "vox offset 540 too low", kind=N2),
    row("vox_offset", 2**62, REFUSED, "behind the end of the file", "cut off or damaged", kind=N2),
    row("dim", [3, 2**40, 9, 8, 1, 1, 1, 1], REFUSED, "more than memory holds", "at most 1073741824 voxels", kind=N2),
    row("dim", [3, -1, 1, 1, 1, 1, 1, 1], REFUSED, "no hack of FreeSurfer here", "the file holds no voxels", kind=N2),
    row("sform_code", 2**31 - 1, DOUBT, "nibabel takes 0", "does not list the code of a form", kind=N2),
    row("xyzt_units", -6, READ, "the low bits say mm", kind=N2),
    Row("NIfTI-2 quaternion", QUATERNION, READ, "rounding: half a turn", kind=N2, forms=Q, reference="plain"),
]
MGH_ROWS = [
    Row("MGH", {}, READ, "the fields as nibabel writes them", kind=MGH, at="scan.mgz"),
    row("version", 2, REFUSED, "nibabel refuses", "not a NIfTI or MGH header", kind=MGH, at="scan.mgh"),
    row("dims", [10, 9, 8, 0], REFUSED, "no frame", "expected 1 or more frames", kind=MGH, at="scan.mgh"),
    row("dims", [10, -9, 8, 1], REFUSED, "no voxels", "the file holds no voxels", kind=MGH, at="scan.mgh"),
    row("dims", [10, 9, 4, 2], REFUSED, "a series", "expected 3 dimensions, found 4", kind=MGH, at="scan.mgh"),
    row("type", 2, REFUSED, "long: not in FreeSurfer's own readers", UNREADABLE, kind=MGH, at="scan.mgh"),
    row("type", -1, REFUSED, "not in the list", UNREADABLE, kind=MGH, at="scan.mgh"),
    row("dof", 99, READ, "degrees of freedom do not change voxels", kind=MGH, at="scan.mgh"),
    row("goodRASFlag", 2, READ, "FreeSurfer: any value above 0", kind=MGH, at="scan.mgh"),
    row(
        "goodRASFlag",
        0,
        STRICT,
        "FreeSurfer assumes coronal",
        "does not say which side is left",
        kind=MGH,
        at="scan.mgh",
        reference=None,
    ),
    row(
        "goodRASFlag",
        -1,
        STRICT,
        "FreeSurfer: not above 0",
        "does not say which side is left",
        kind=MGH,
        at="scan.mgh",
        reference=None,
    ),
    row(
        "delta",
        [2, 0, 3],
        REFUSED,
        "a voxel size is missing",
        "states no voxel size, or 0",
        kind=MGH,
        at="scan.mgh",
    ),
    row("delta", [2, -2.5, 3], REFUSED, "no voxel size", "states no voxel size, or 0", kind=MGH, at="scan.mgh"),
    row(
        "delta",
        [2, np.nan, 3],
        REFUSED,
        "a voxel size is missing",
        "states no voxel size, or 0",
        kind=MGH,
        at="scan.mgh",
    ),
    row(
        "Mdc",
        2 * np.diag([-1.0, 1, -1]),
        DOUBT,
        "nibabel takes the product with delta",
        "do not have length 1",
        kind=MGH,
        at="scan.mgh",
    ),
    row(
        "Mdc",
        np.ones((3, 3)),
        REFUSED,
        "no axes",
        "distinct axes|cannot be inverted|one axis",
        kind=MGH,
        at="scan.mgh",
    ),
    row(
        "Pxyz_c",
        [np.nan, 0, 0],
        REFUSED,
        "no position",
        "distinct axes|cannot be inverted",
        kind=MGH,
        at="scan.mgh",
    ),
]
ROWS = NIFTI + NIFTI2 + MGH_ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind.__name__}-{row.name}-{row.forms}")
def test_each_value_of_a_header_field_is_treated_as_the_table_says(tmp_path, row, capfd):
    path = write(tmp_path, row)
    problems, doubts = shard_says(path)
    errors, notes = enhance_says(path)
    treated = {
        (False, False, False, False): READ,
        (False, True, False, True): DOUBT,
        (True, False, False, True): STRICT,
        (True, False, True, False): REFUSED,
    }
    # Where shard refuses, its doubts do not matter.
    found = (bool(problems), bool(doubts) and not problems, bool(errors), bool(notes))
    assert treated.get(found) == row.treated, (problems, doubts, errors, notes)
    if row.says:
        for text in (problems or doubts, errors or notes):
            assert any(re.search(row.says, line) for line in text), text
    assert "nibabel" not in capfd.readouterr().err
    if row.treated != REFUSED and row.reference:
        volume = read_volume(path)
        voxels, affine = reference_of(path, row)
        np.testing.assert_allclose(volume.voxels, voxels, rtol=1e-6)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


@pytest.mark.parametrize("row", [row for row in NIFTI + NIFTI2 if not row.raw], ids=lambda row: row.name)
def test_the_byte_order_changes_nothing(tmp_path, row):
    (tmp_path / "swapped").mkdir()
    outcomes = []
    for order, folder in (("<", tmp_path), (">", tmp_path / "swapped")):
        try:
            outcomes.append(read_header(write(folder, row, order)))
        except VolumeError as error:
            outcomes.append(error.problem)
    if isinstance(outcomes[0], Header):
        np.testing.assert_array_equal(outcomes[0].affine, outcomes[1].affine)
        assert outcomes[0].doubts == outcomes[1].doubts
        assert outcomes[0].shape == outcomes[1].shape
    else:
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("dtype", "factor", "offset", "values"),
    [
        (np.int32, 1, 1e9, {}),
        (np.uint32, 1, 4e9, {}),
        (np.float64, 1, 1e9, {}),
        (np.float64, 1e-43, 0, {}),
        (np.float64, 1e-60, 0, {}),
        (np.float64, 1e300, 0, {}),
        (np.float32, 1e-40, 0, {}),
        (np.int16, 1, 0, {"scl_slope": 1, "scl_inter": 1e9}),
        (np.int16, 1, 0, {"scl_slope": 1e-38, "scl_inter": 1e-38}),
        (np.float32, 1, 0, {"scl_slope": 1e-3, "scl_inter": -1e9}),
    ],
)
def test_values_that_float32_cannot_tell_apart_keep_their_differences(tmp_path, dtype, factor, offset, values):
    stored: Any = (VOXELS * np.float64(factor) + offset).astype(dtype)
    content = bytearray(nib.Nifti1Image(stored, AFFINE).to_bytes())
    fields = np.frombuffer(bytes(content[:348]), dtype=nib.Nifti1Header.template_dtype)[0].copy()
    for name, value in values.items():
        fields[name] = value
    content[:348] = fields.tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    plain = write(tmp_path, ROWS[0])
    np.testing.assert_allclose(normalised(read_volume(tmp_path / "a.nii")), normalised(read_volume(plain)), atol=2e-6)


def test_values_that_nothing_can_tell_apart_are_refused(tmp_path):
    path = write(tmp_path, Row("huge", {"scl_slope": 1, "scl_inter": 1e25}, REFUSED, ""))
    with pytest.raises(VolumeError, match="its values are so large that they cannot be distinguished"):
        read_volume(path)


def test_the_table_covers_every_field_of_the_formats():
    covered = {name for row in ROWS for name in row.values} | {"dim", "pixdim"}
    for rows, dtype in ((NIFTI, nib.Nifti1Header.template_dtype), (NIFTI2, nib.Nifti2Header.template_dtype)):
        assert rows
        assert dtype.names is not None
        assert set(dtype.names) <= covered
    assert set(MGH_DTYPE.names) <= covered
