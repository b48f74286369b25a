"""Enhanced scans have the same position in the world as the originals, also when nibabel alone reads the files."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from heads import (
    AXCODES,
    OBLIQUE,
    SHAPE,
    SPACING_MM,
    Unchanged,
    draw,
    landmark_mm,
    load,
    model_card,
    off_mm,
    scan_affine,
    write_scan,
)
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.nifti1 import Nifti1Extension

from upfield.common.errors import InputError, VolumeError
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import ModelInput, OutputLayout, enhance_volume, prepare, write_enhanced

HALF_VOXEL_MM = 0.5
CODES = [(1, 1), (1, 0), (0, 1), (2, 2), (3, 3), (4, 4), (0, 4)]


def enhanced(scan: Path, out: Path, layout: OutputLayout = OutputLayout()) -> ModelInput:  # noqa: B008 (frozen)
    """Write the output of a model that changes nothing."""
    prepared = prepare(scan, model_card(), str(scan))
    write_enhanced(prepared, restore_volume(prepared.low, Unchanged(), 4), out, layout)
    return prepared


@pytest.mark.parametrize("rotation", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axcodes", AXCODES)
def test_a_landmark_stays_where_it_was_in_the_world(tmp_path: Path, axcodes: str, rotation: np.ndarray | None) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", axcodes, rotation)
    enhanced(scan, tmp_path / "own.nii.gz")
    enhanced(scan, tmp_path / "ras.nii.gz", OutputLayout(keep_ras=True))
    for name, expected in (("own", axcodes), ("ras", "RAS")):
        path = tmp_path / f"{name}.nii.gz"
        assert off_mm(path) < HALF_VOXEL_MM
        image = load(path)
        assert "".join(nib.orientations.aff2axcodes(image.affine)) == expected
        np.testing.assert_allclose(image.header.get_zooms(), 1, atol=1e-5)


@pytest.mark.parametrize("axcodes", ["RAS", "PSR", "LIA"])
def test_the_field_of_view_is_the_same_to_the_nearest_voxel(tmp_path: Path, axcodes: str) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", axcodes, OBLIQUE)
    enhanced(scan, tmp_path / "out.nii.gz")
    before, after = load(scan), load(tmp_path / "out.nii.gz")
    extent_mm = np.array(before.shape) * before.header.get_zooms()
    np.testing.assert_allclose(after.shape, extent_mm, atol=HALF_VOXEL_MM)
    middles = [image.affine @ (*(np.array(image.shape) - 1) / 2, 1) for image in (before, after)]
    np.testing.assert_allclose(middles[0], middles[1], atol=1e-4)
    directions = [image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0) for image in (before, after)]
    np.testing.assert_allclose(directions[0], directions[1], atol=1e-6)


@pytest.mark.parametrize(("qform_code", "sform_code"), CODES)
def test_the_header_names_the_same_space_as_the_scan(tmp_path: Path, qform_code: int, sform_code: int) -> None:
    affine, _ = scan_affine(OBLIQUE, "PSR")
    image = nib.Nifti1Image(draw((28, 10, 24), affine), None)
    image.set_qform(affine, code=qform_code)
    image.set_sform(affine, code=sform_code)
    image.to_filename(tmp_path / "scan.nii.gz")
    enhanced(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    header = load(tmp_path / "out.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (qform_code, sform_code)
    assert off_mm(tmp_path / "out.nii.gz") < HALF_VOXEL_MM


def test_two_spaces_of_one_scan_are_both_kept(tmp_path: Path) -> None:
    affine, _ = scan_affine(OBLIQUE)
    elsewhere = np.eye(4)
    elsewhere[:3, 3] = (40, -10, 7)
    image = nib.Nifti1Image(draw(SHAPE, affine), None)
    image.set_qform(elsewhere @ affine, code=1)
    image.set_sform(affine, code=4)
    image.to_filename(tmp_path / "scan.nii.gz")
    enhanced(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    header = load(tmp_path / "out.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 4)
    np.testing.assert_allclose(header.get_qform(), elsewhere @ header.get_sform(), atol=1e-3)


def test_a_sheared_scan_stays_in_its_place_and_is_noted(tmp_path: Path) -> None:
    affine, _ = scan_affine()
    shear = np.eye(4)
    shear[1, 2] = 0.3
    sheared = affine @ shear
    image = nib.Nifti1Image(draw(SHAPE, sheared), None)
    image.set_sform(sheared, code=1)
    image.set_qform(affine @ np.diag((1, 1, 2, 1)), code=1)
    image.to_filename(tmp_path / "scan.nii.gz")
    prepared = enhanced(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    assert any("sheared" in note for note in prepared.notes)
    assert any("sform and qform differ by" in note for note in prepared.notes)
    assert off_mm(tmp_path / "out.nii.gz") < HALF_VOXEL_MM
    # A qform with other spacings would contradict the sform, which takes precedence.
    assert int(load(tmp_path / "out.nii.gz").header["qform_code"]) == 0


def test_a_scan_without_a_place_gets_none_and_is_noted(tmp_path: Path) -> None:
    image = nib.Nifti1Image(draw(SHAPE, scan_affine()[0]), None)
    image.header.set_zooms(SPACING_MM)
    image.to_filename(tmp_path / "scan.nii.gz")
    prepared = enhanced(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    assert any("left and right may be exchanged" in note for note in prepared.notes)
    header = load(tmp_path / "out.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)
    # Neither file states a position, so a reader must assume the same one for both.
    np.testing.assert_allclose(landmark_mm(tmp_path / "out.nii.gz"), landmark_mm(tmp_path / "scan.nii.gz"), atol=0.5)
    enhanced(tmp_path / "scan.nii.gz", tmp_path / "ras.nii.gz", OutputLayout(keep_ras=True))
    # Without an sform, readers would assume other axes than RAS.
    assert int(load(tmp_path / "ras.nii.gz").header["sform_code"]) == 2


def test_only_the_description_is_kept_of_text_that_may_name_people(tmp_path: Path) -> None:
    affine, _ = scan_affine()
    image = nib.Nifti1Image(draw(SHAPE, affine).astype(">i2"), affine, nib.Nifti1Header(endianness=">"))
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = b"TE=5", b"aux", b"Doe^Jane"
    image.header.set_intent("t test", (2,), name="Doe")
    image.header.extensions.append(Nifti1Extension("comment", b"Doe"))
    image.header["cal_max"] = 230
    image.to_filename(tmp_path / "scan.nii.gz")
    enhanced(tmp_path / "scan.nii.gz", tmp_path / "out.nii")
    header = load(tmp_path / "out.nii").header
    assert bytes(header["descrip"]).startswith(b"enhanced by upfield, for research only; TE=5")
    assert header.get_xyzt_units() == ("mm", "sec")
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0, 1)
    assert header.get_slope_inter() == (None, None) or header.get_slope_inter() == (1, 0)
    assert b"Doe" not in (tmp_path / "out.nii").read_bytes()
    assert header.get_intent()[0] == "none"
    assert not header.extensions


def test_an_mgz_file_becomes_nifti_in_the_same_place(tmp_path: Path) -> None:
    affine, _ = scan_affine(OBLIQUE)
    voxels: Any = draw(SHAPE, affine)
    MGHImage(voxels, affine).to_filename(tmp_path / "scan.mgz")
    enhanced(tmp_path / "scan.mgz", tmp_path / "out.nii.gz")
    assert off_mm(tmp_path / "out.nii.gz") < HALF_VOXEL_MM
    header = load(tmp_path / "out.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)


def test_nifti_2_can_be_read(tmp_path: Path) -> None:
    affine, _ = scan_affine(OBLIQUE, "LPS")
    nib.Nifti2Image(draw(SHAPE, affine), affine).to_filename(tmp_path / "scan.nii.gz")
    enhanced(tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz")
    assert off_mm(tmp_path / "out.nii.gz") < HALF_VOXEL_MM


def test_the_same_scan_gives_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    for name in ("one.nii.gz", "another.nii.gz", "plain.nii"):
        enhanced(scan, tmp_path / name)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "another.nii.gz").read_bytes()
    one, plain = (load(tmp_path / name) for name in ("one.nii.gz", "plain.nii"))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(plain.dataobj))
    assert one.header.binaryblock == plain.header.binaryblock
    assert one.get_data_dtype() == np.float32


def test_errors_name_the_scan_as_the_caller_does(tmp_path: Path) -> None:
    (tmp_path / "hidden.nii.gz").write_bytes(b"nothing")
    nib.Nifti1Image(np.random.default_rng(0).random((4, 4, 4), np.float32), np.eye(4)).to_filename(tmp_path / "s.nii")
    nib.Nifti1Image(np.zeros((30, 30, 30), np.float32), np.eye(4)).to_filename(tmp_path / "c.nii")
    for name in ("hidden.nii.gz", "absent.nii", "s.nii", "c.nii"):
        scan = tmp_path / name
        with pytest.raises(VolumeError, match=r"^your scan: ") as caught:
            prepare(scan, model_card(), "your scan")
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InputError, match="expected a model with normalisation"):
        prepare(tmp_path / "s.nii", model_card(normalisation="otherwise"), "your scan")


@pytest.mark.parametrize(
    ("spacing_mm", "unit", "message"),
    [
        ((30, 30, 30), "mm", "at most 600 mm, found 720 x 840 x 300 mm. Fix the spacing"),
        ((0.1, 0.1, 0.1), "mm", "at least 9 mm along every axis, found 2.4 x 2.8 x 1 mm"),
        ((0.0016, 0.0016, 0.005), "meter", "lengths in metres; convert them to mm"),
        ((1600, 1600, 5000), "micron", "lengths in micrometres; convert them to mm"),
    ],
)
def test_scans_that_are_not_the_size_of_a_head_are_refused(
    tmp_path: Path, spacing_mm: tuple[float, ...], unit: str, message: str
) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).random(SHAPE, np.float32), np.diag((*spacing_mm, 1.0)))
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "scan.nii")
    with pytest.raises(VolumeError, match=message):
        prepare(tmp_path / "scan.nii", model_card(), "scan")


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_slices_come_back_in_order_for_any_batch(context: int, batch_size: int) -> None:
    low = np.random.default_rng(0).random((11, 9, 10), np.float32)
    np.testing.assert_array_equal(restore_volume(low, Unchanged(context), batch_size), low)


def test_every_slice_is_restored_once_and_counted() -> None:
    shapes: list[tuple[int, ...]] = []

    class Watched(Unchanged):
        def restore(self, low: np.ndarray) -> np.ndarray:
            shapes.append(low.shape)
            return super().restore(low)

    counts: list[int] = []
    restore_volume(np.zeros((11, 9, 10), np.float32), Watched(), 4, counts.append)
    assert shapes == [(4, 1, 9, 10), (4, 1, 9, 10), (3, 1, 9, 10)]
    assert counts == [4, 4, 3]


def test_enhance_volume_returns_the_volume_that_is_written(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", "PSR", OBLIQUE)
    volume = enhance_volume(scan, Unchanged(), batch_size=4)
    enhanced(scan, tmp_path / "out.nii.gz")
    image = load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.voxels)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize(("finest_mm", "is_noted"), [(0.7, False), (0.5, True)])
def test_a_scan_much_finer_than_the_models_grid_is_noted_with_its_axis(tmp_path, finest_mm, is_noted):
    affine = np.diag([-5.0, finest_mm, 1.6, 1.0])
    voxels = np.random.default_rng(0).integers(0, 900, (8, 40, 20), np.int16)
    nib.Nifti1Image(voxels, affine).to_filename(tmp_path / "scan.nii")
    notes = prepare(tmp_path / "scan.nii", model_card(), "scan").notes
    expected = "the scan is finer than the grid of the model along posterior-anterior (0.5 mm against 1 mm)"
    assert any(note.startswith(expected) for note in notes) == is_noted
