import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from upfield.imaging.extent import Extent, place_doubt, tilt_problem
from upfield.imaging.header import read_header
from upfield.imaging.volume_header import VolumeHeader

SHAPE, SPACING_MM = (20, 30, 40), (1.0, 2.0, 3.0)


GRID_MM = np.array([20.0, 50, 100])


def affine(origin_mm=(0, 0, 0), spacing_mm=SPACING_MM):
    placed = np.diag([*spacing_mm, 1.0])
    placed[:3, 3] = origin_mm
    return placed


def extent(shape=SHAPE, origin_mm=(0, 0, 0), spacing_mm=SPACING_MM, is_placed=True):
    return Extent(affine(origin_mm, spacing_mm), np.array(shape), is_placed)


def save_reoriented(path, codes, code=1):
    """Save a volume with its axes in the given order."""
    transform = ornt_transform(io_orientation(affine()), axcodes2ornt(codes))
    voxels = apply_orientation(np.zeros(SHAPE, np.int16), transform)
    image = nib.Nifti1Image(voxels, affine((5, 6, 7)) @ inv_ornt_aff(transform, SHAPE))
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LPI", "SAL"])
def test_an_extent_is_the_same_however_the_voxels_are_stored(tmp_path, codes):
    stored = Extent.of(VolumeHeader.of([read_header(save_reoriented(tmp_path / "a.nii", codes))]))
    np.testing.assert_allclose(stored.affine, affine((5, 6, 7)), atol=1e-4)
    assert tuple(stored.shape) == SHAPE
    np.testing.assert_allclose(stored.bounds_mm, [[4.5, 5, 5.5], [24.5, 65, 125.5]], atol=1e-4)
    np.testing.assert_allclose(stored.size_mm, [20, 60, 120], atol=1e-4)
    assert stored.is_placed


def test_a_file_without_codes_has_no_position_even_if_the_cohort_states_its_axes(tmp_path):
    header = read_header(save_reoriented(tmp_path / "a.nii", "RAS", code=0), "RAS")
    assert header.is_oriented
    assert not Extent.of(VolumeHeader.of([header])).is_placed


@pytest.mark.parametrize("steps_mm", [0.0, 3.0])
def test_a_stack_is_placed_where_its_slices_are(tmp_path, steps_mm):
    headers = []
    for number in range(4):
        image = nib.Nifti1Image(np.zeros((20, 30, 1), np.int16), affine((0, 0, steps_mm * number)))
        image.to_filename(tmp_path / f"{number}.nii")
        headers.append(read_header(tmp_path / f"{number}.nii"))
    stored = Extent.of(VolumeHeader.of(headers))
    assert tuple(stored.shape) == (20, 30, 4)
    assert stored.size_mm[2] == 12
    assert stored.is_placed == (steps_mm > 0)


@pytest.mark.parametrize("fit", ["resize", "crop_pad"])
def test_fields_in_the_same_position_cause_no_warning(fit):
    other = extent((20, 60, 120), (1, -5, 8), (1, 1, 1))
    assert place_doubt(extent(), other, fit, GRID_MM) is None
    assert tilt_problem(extent(), other) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resize_warns_of_borders_that_are_far_apart(axis):
    names = ("left-right", "posterior-anterior", "inferior-superior")
    for apart_mm, warns in ((-9.0, False), (9.0, False), (11.0, True), (-300.0, True)):
        origin_mm = np.zeros(3)
        origin_mm[axis] = apart_mm
        warning = place_doubt(extent(), extent(origin_mm=origin_mm), "resize", GRID_MM)
        assert (warning is not None) == warns
        if warning:
            assert f"but some borders are {abs(apart_mm):.0f} mm apart {names[axis]}" in warning


def test_resize_warns_of_a_field_of_view_that_it_would_stretch():
    warning = place_doubt(extent((20, 30, 35)), extent(), "resize", GRID_MM)
    assert warning is not None
    assert "15 mm apart inferior-superior (low field 105 mm, high field 120 mm). Use fit: crop_pad" in warning
    assert place_doubt(extent((20, 30, 35)), extent(), "crop_pad", GRID_MM) is None


@pytest.mark.parametrize(("slices", "warns"), [(40, False), (27, False), (20, True)])
def test_crop_pad_warns_if_only_one_field_shows_the_whole_head(slices, warns):
    for low, high in ((extent((20, 30, slices)), extent()), (extent(), extent((20, 30, slices)))):
        warning = place_doubt(low, high, "crop_pad", GRID_MM)
        assert (warning is not None) == warns
        if warning:
            assert "share only 60 of 100 mm inferior-superior. Complete the shorter scan" in warning


def test_fields_that_are_far_apart_share_nothing():
    warning = place_doubt(extent(), extent(origin_mm=(500, 0, 0)), "crop_pad", GRID_MM)
    assert warning is not None
    assert "share only 0 of 20 mm left-right" in warning


@pytest.mark.parametrize("fit", ["resize", "crop_pad"])
def test_positions_that_files_do_not_state_are_not_compared(fit):
    elsewhere = extent(origin_mm=(500, 0, 0), is_placed=False)
    assert place_doubt(elsewhere, extent(), fit, GRID_MM) is None
    assert place_doubt(extent(), elsewhere, fit, GRID_MM) is None
