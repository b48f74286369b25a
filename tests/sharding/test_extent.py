import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from upfield.sharding import extent as module
from upfield.sharding.extent import Extent
from upfield.sharding.header import read_header

SHAPE, SPACING_MM = (20, 30, 40), (1.0, 2.0, 3.0)


def pair_problems(low, high, fit):
    return module.pair_problems(low, high, fit, np.array([20.0, 50, 100]))


def affine(origin_mm=(0, 0, 0), spacing_mm=SPACING_MM):
    placed = np.diag([*spacing_mm, 1.0])
    placed[:3, 3] = origin_mm
    return placed


def extent(shape=SHAPE, origin_mm=(0, 0, 0), spacing_mm=SPACING_MM, is_placed=True):
    return Extent(affine(origin_mm, spacing_mm), np.array(shape), is_placed)


def turned(path, codes, code=1):
    """Save a volume in another order of axes."""
    transform = ornt_transform(io_orientation(affine()), axcodes2ornt(codes))
    voxels = apply_orientation(np.zeros(SHAPE, np.int16), transform)
    image = nib.Nifti1Image(voxels, affine((5, 6, 7)) @ inv_ornt_aff(transform, SHAPE))
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LPI", "SAL"])
def test_an_extent_is_the_same_however_the_voxels_are_stored(tmp_path, codes):
    found = Extent.of([read_header(turned(tmp_path / "a.nii", codes))])
    np.testing.assert_allclose(found.affine, affine((5, 6, 7)), atol=1e-4)
    assert tuple(found.shape) == SHAPE
    np.testing.assert_allclose(found.bounds_mm, [[4.5, 5, 5.5], [24.5, 65, 125.5]], atol=1e-4)
    np.testing.assert_allclose(found.size_mm, [20, 60, 120], atol=1e-4)
    assert found.is_placed


def test_a_file_without_codes_says_nothing_of_its_place_even_where_the_cohort_gives_its_axes(tmp_path):
    header = read_header(turned(tmp_path / "a.nii", "RAS", code=0), "RAS")
    assert header.is_oriented
    assert not Extent.of([header]).is_placed


@pytest.mark.parametrize("steps_mm", [0.0, 3.0])
def test_a_stack_is_placed_where_its_slices_are(tmp_path, steps_mm):
    headers = []
    for number in range(4):
        image = nib.Nifti1Image(np.zeros((20, 30, 1), np.int16), affine((0, 0, steps_mm * number)))
        image.to_filename(tmp_path / f"{number}.nii")
        headers.append(read_header(tmp_path / f"{number}.nii"))
    found = Extent.of(headers)
    assert tuple(found.shape) == (20, 30, 4)
    assert found.size_mm[2] == 12
    assert found.is_placed == (steps_mm > 0)


@pytest.mark.parametrize("fit", ["resize", "crop_pad"])
def test_fields_in_one_place_are_a_pair(fit):
    assert list(pair_problems(extent(), extent((20, 60, 120), (1, -5, 8), (1, 1, 1)), fit)) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("fit", ["resize", "crop_pad"])
def test_fields_that_share_little_of_their_view_are_none(axis, fit):
    sizes_mm = np.array(SHAPE) * SPACING_MM
    names = ("left-right", "posterior-anterior", "inferior-superior")
    for share, odd in ((0.7, False), (0.45, True), (-1.0, True)):
        origin_mm = np.zeros(3)
        origin_mm[axis] = sizes_mm[axis] * (1 - share)
        (*told,) = pair_problems(extent(), extent(origin_mm=origin_mm), fit)
        assert bool(told) == odd
        if odd:
            said = f"share {max(share, 0) * sizes_mm[axis]:.0f} of {sizes_mm[axis]:.0f} mm {names[axis]}; register them"
            assert said in told[0]


def test_a_view_of_another_size_is_told_where_it_would_be_stretched():
    half = extent((20, 30, 25), (0, 0, 30))
    assert list(pair_problems(half, extent(), "crop_pad")) == []
    (told,) = pair_problems(half, extent(), "resize")
    assert "found 75 mm of low and 120 mm of high field inferior-superior; complete the shorter one" in told
    assert list(pair_problems(extent((20, 30, 38)), extent(), "resize")) == []


def test_places_that_files_do_not_state_are_not_compared():
    elsewhere = extent(origin_mm=(500, 0, 0), is_placed=False)
    assert list(pair_problems(elsewhere, extent(), "resize")) == []
    assert list(pair_problems(extent(), elsewhere, "crop_pad")) == []


@pytest.mark.parametrize(("slices", "odd"), [(40, False), (25, False), (20, True)])
def test_a_field_that_shows_a_part_of_the_head_is_told_where_the_other_shows_it_all(slices, odd):
    for low, high in ((extent((20, 30, slices)), extent()), (extent(), extent((20, 30, slices)))):
        told = list(pair_problems(low, high, "crop_pad"))
        assert bool(told) == odd
        if odd:
            assert "share 60 of 100 mm inferior-superior; complete the shorter one" in told[0]
