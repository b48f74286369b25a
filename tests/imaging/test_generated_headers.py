"""Whatever a header says, its file is read right, or with a doubt, or refused, and shard and enhance agree."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from header_files import MGH, N2, Row, enhance_says, nib, reference_of, shard_says, write
from hypothesis import example, given
from hypothesis import strategies as st

from upfield.imaging.volume import read_volume

FLOATS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, 1e9, -1e9, 1e38, np.nan, np.inf, -np.inf]) | st.floats(
    width=32, allow_nan=True
)
INTS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 99, -1, -32768, 32767]) | st.integers(-32768, 32767)
# Voxels of 1.2 to 12 mm give a field of view that enhance accepts. Larger and smaller ones are refused by both.
SIZES = st.sampled_from([2.0, 2.5, 3.0, 1.2, 12.0, 0.0, -2.0, 13.0, 0.01, 1e9, np.nan, np.inf]) | st.floats(
    1.25, 11, width=32
)
DIMS = st.sampled_from([[3, 10, 9, 8, 1, 1, 1, 1], [4, 10, 9, 8, 1, 1, 1, 1], [4, 10, 9, 8, 0, 0, 0, 0]]) | st.lists(
    st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 10, -1, 27307, 30000]), min_size=8, max_size=8
)
NIFTI: dict[str, st.SearchStrategy[Any]] = {
    "sizeof_hdr": st.sampled_from([0, 348, 540, -1]),
    "dim_info": st.integers(0, 255),
    "dim": DIMS,
    "intent_p1": FLOATS,
    "intent_code": INTS | st.sampled_from([1001, 1002, 1007]),
    "datatype": st.sampled_from([2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280]) | INTS,
    "bitpix": INTS,
    "slice_start": INTS,
    "slice_end": INTS,
    "slice_code": st.integers(0, 127),
    "slice_duration": FLOATS,
    "toffset": FLOATS,
    "pixdim": st.tuples(FLOATS, SIZES, SIZES, SIZES, FLOATS, FLOATS, FLOATS, FLOATS).map(list),
    "pixdim0": FLOATS,
    "vox_offset": st.sampled_from([0, 1, 348, 352, 544, 352.5, 1000, -352, 1e9]),
    "scl_slope": FLOATS,
    "scl_inter": FLOATS,
    "xyzt_units": st.integers(0, 127),
    "cal_max": FLOATS,
    "cal_min": FLOATS,
    "descrip": st.binary(max_size=80),
    "aux_file": st.binary(max_size=24),
    "qform_code": INTS,
    "sform_code": INTS,
    "quatern_b": FLOATS,
    "quatern_c": st.sampled_from([1.0, 1.0000001, 1.000001, 1.0001, 1.01, 0.9999, 0.0]) | FLOATS,
    "quatern_d": FLOATS,
    "qoffset_x": FLOATS,
    "qoffset_y": FLOATS,
    "qoffset_z": FLOATS,
    "srow_x": st.lists(FLOATS, min_size=4, max_size=4),
    "srow_y": st.lists(FLOATS, min_size=4, max_size=4),
    "srow_z": st.lists(FLOATS, min_size=4, max_size=4),
    "intent_name": st.binary(max_size=16),
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b"ni2", b"", b"n+1 "]),
}
MGH_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "version": st.sampled_from([1, 1, 1, 0, 2, 257]),
    "dims": st.sampled_from([[10, 9, 8, 1], [10, 9, 8, 0], [10, 9, 4, 2], [720, 1, 1, 1], [10, -9, 8, 1]]),
    "type": st.sampled_from([0, 1, 2, 3, 4, 10, -1, 99]),
    "dof": INTS,
    "goodRASFlag": INTS,
    "delta": st.lists(SIZES, min_size=3, max_size=3),
    "Mdc": st.lists(FLOATS, min_size=9, max_size=9).map(lambda values: np.reshape(values, (3, 3))),
    "Pxyz_c": st.lists(FLOATS, min_size=3, max_size=3),
}
CODES = st.sampled_from([0, 1, 2, 3, 4, 5])


def some_of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for values of at most four fields, because files with many faults are all refused."""
    names = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: fields[name] for name in chosen}))


def outcome(row: Row, order: str) -> None:
    """Check that shard and enhance agree about a file, and that voxels without a doubt are those of a reference."""
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        path = write(Path(folder), row, order)
        problems, doubts = shard_says(path)
        errors, notes = enhance_says(path)
        if not problems:
            assert not errors
            assert bool(doubts) == bool(notes), (doubts, notes)
        elif not errors:
            assert notes, problems
        if problems or doubts:
            return
        compare(path, row)


def compare(path: Path, row: Row) -> None:
    """Compare a file with what nibabel or SimpleITK reads; at least one of them must read it the same way."""
    volume = read_volume(path)
    differences: list[str] = []
    for reference in ("nibabel", "sitk"):
        try:
            voxels, affine = reference_of(path, Row(row.name, {}, "", "", kind=row.kind, reference=reference))
        except Exception as error:
            differences.append(f"{reference}: {error}")
            continue
        expected = np.float64(voxels - voxels.flat[0])
        found = np.float64(volume.voxels) - np.float64(volume.voxels.flat[0])
        peak = np.abs(expected).max()
        if np.allclose(volume.affine, affine, atol=1e-3, rtol=1e-5) and np.allclose(
            found / np.abs(found).max(), expected / peak, atol=1e-4
        ):
            return
        differences.append(f"{reference}: other values or another place")
    raise AssertionError(f"{row.values}: {differences}")


@pytest.mark.generated
@given(
    values=some_of(NIFTI),
    forms=st.tuples(CODES, CODES),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti1Image, N2]),
    order=st.sampled_from("<>"),
)
def test_any_nifti_header_is_read_right_or_doubted_or_refused(values, forms, kind, order):
    if kind is N2 and "magic" in values:
        values = values | {"magic": values["magic"].replace(b"1", b"2")}
    if kind is N2 and "dim" in values:
        # nibabel alone reads NIfTI-2 here, and it reads no image if a further dimension has size 0.
        values = values | {"dim": [*values["dim"][:4], *(max(size, 1) for size in values["dim"][4:])]}
    outcome(Row("generated", values, "", "", forms=forms, kind=kind), order)


@pytest.mark.generated
@given(values=some_of(MGH_FIELDS), at=st.sampled_from(["scan.mgh", "scan.mgz"]))
def test_any_mgh_header_is_read_right_or_doubted_or_refused(values, at):
    outcome(Row("generated", values, "", "", kind=MGH, at=at), ">")


@pytest.mark.generated
@given(
    offset=st.integers(0, 540), new=st.binary(min_size=1, max_size=8), kind=st.sampled_from([nib.Nifti1Image, N2, MGH])
)
@example(offset=39, new=b"\x00\x00\x00=", kind=MGH)
@example(offset=395, new=b"\r", kind=nib.Nifti1Image)
def test_any_bytes_in_a_header_cause_no_fault(offset, new, kind):
    row = Row("bytes", {}, "", "", kind=kind, raw={offset: new}, at="scan.mgh" if kind is MGH else "scan.nii")
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        path = write(Path(folder), row)
        problems, doubts = shard_says(path)
        errors, notes = enhance_says(path)
        # Only enhance refuses fields of view that are too small for the network, and voxels without a head.
        fits = not any("field of view" in error or "brighter than air" in error for error in errors)
        assert problems or not fits or (not errors and bool(doubts) == bool(notes))
        assert errors or notes or not problems
