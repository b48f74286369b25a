import nibabel as nib
import numpy as np
import pytest

from upfield.common.command import parse
from upfield.common.errors import VolumeError
from upfield.imaging.volume import Volume
from upfield.sharding.building.pairs import Grids, head_centre, make_pairs, to_world
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import find_subjects
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.shard import COMMAND

GEOMETRY = GeometryConfig((12, 14, 6), (1.6, 1.6, 5.0), (20, 24, 28), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def config(tiny_cohort):
    return parse(COMMAND, ["--config", str(tiny_cohort / "cohorts.yaml"), "--out", "x"])


@pytest.fixture(scope="module")
def pairs(config, tiny_cohort):
    """The pairs of a training subject with a real low field and of one without."""
    subjects = [
        next(s for s in find_subjects(cohort, tiny_cohort).subjects if s.split == "train") for cohort in config.cohorts
    ]
    return [make_pairs(subject, config).pairs for subject in preflight(subjects).subjects]


def ball(shape, centre, radius, spacing_mm=(1.0, 1.0, 1.0)):
    places = np.ix_(*((np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing_mm, strict=True)))
    inside = sum(place**2 for place in places) <= radius**2
    return Volume(np.asarray(inside, dtype=np.float32), np.diag([*spacing_mm, 1.0]))


def middle(voxels):
    return [
        np.average(np.arange(n), weights=voxels.sum(axis=tuple({0, 1, 2} - {i}))) for i, n in enumerate(voxels.shape)
    ]


def test_pairs_lie_on_the_high_field_grid_in_0_to_1(pairs):
    for pair in (pair for subject in pairs for pair in subject):
        for voxels in (pair.low, pair.high):
            assert (voxels.shape, voxels.dtype) == ((20, 24, 28), np.float16)
            assert (voxels.min(), voxels.max()) == (0, 1)


def test_a_subject_has_its_real_pair_and_its_synthetic_ones(pairs):
    assert [[pair.unit.kind for pair in subject] for subject in pairs] == [["real", "synthetic"], ["synthetic"]]


def test_synthetic_pairs_record_their_parameters(pairs):
    real, synthetic = pairs[0]
    assert real.parameters == {}
    assert sorted(synthetic.parameters) == ["gamma", "noise_std", "sigma_vox"]


def test_low_field_resembles_its_partner_but_is_not_it(pairs):
    for pair in (pair for subject in pairs for pair in subject):
        correlation = np.corrcoef(pair.low.ravel().astype(float), pair.high.ravel().astype(float))[0, 1]
        assert 0.6 < correlation < 0.99


def test_the_high_field_of_all_a_subjects_pairs_is_the_same(pairs):
    np.testing.assert_array_equal(pairs[0][0].high, pairs[0][1].high)


@pytest.mark.parametrize("shift", [(0, 0, 0), (4, -3, 5)])
def test_crop_pad_centres_a_head_wherever_it_lies(shift):
    head = ball((40, 44, 48), np.array([20, 22, 24]) + shift, 8)
    box = crop_pad(head).high_from_file(head).voxels
    np.testing.assert_allclose(middle(box), [9.5, 11.5, 13.5], atol=0.6)
    assert box.sum() == pytest.approx(head.voxels.sum(), rel=0.02)


def test_crop_pad_cuts_the_neck_of_a_tall_head_not_its_top():
    tall = np.zeros((20, 24, 60), np.float32)
    tall[5:15, 6:18, :50] = 1
    centre = head_centre(Volume(tall, np.eye(4)), np.array([20.0, 24.0, 28.0]))
    # The box ends just above the topmost plane, 49.
    assert 49 <= centre[2] + 14 <= 52


def test_crop_pad_brings_both_fields_to_the_same_place():
    high = ball((30, 30, 40), (13, 16, 22), 8)
    low = ball((20, 20, 10), (13 / 1.5, 16 / 1.5, 22 / 4), 8, (1.5, 1.5, 4.0))
    grids = crop_pad(high)
    up = grids.low_to_high(grids.low_from_file(low).voxels)
    np.testing.assert_allclose(middle(np.clip(up, 0, 1)), middle(grids.high_from_file(high).voxels), atol=0.5)


@pytest.mark.parametrize("fit", ["resize", "crop_pad"])
def test_volumes_on_the_grids_have_scanner_coordinates(fit):
    where_mm = np.array([3.0, 40.0, -7.0])
    high = ball((26, 30, 34), (13, 16, 18), 6)
    low = ball((17, 20, 8), (13 / 1.5, 16 / 1.5, 18 / 4), 6, (1.5, 1.5, 4.0))
    grids = Grids.around(GEOMETRY, fit, moved(high, where_mm))
    expected = where_mm + np.array([13, 16, 18])
    on_grid = grids.high_from_file(moved(high, where_mm))
    for volume in (on_grid, grids.high_to_low(on_grid), grids.low_from_file(moved(low, where_mm))):
        centre = np.array(middle(np.clip(volume.voxels, 0, 1)))
        np.testing.assert_allclose(to_world(volume.affine, centre), expected, atol=0.6)


def moved(volume, where_mm):
    affine = volume.affine.copy()
    affine[:3, 3] += where_mm
    return Volume(volume.voxels, affine)


def crop_pad(high):
    return Grids.around(GEOMETRY, "crop_pad", high)


def test_a_nearly_constant_volume_is_refused_with_its_path(tmp_path, config, tiny_cohort):
    voxels = np.zeros((20, 24, 28), np.int16)
    voxels[3, 3, 3] = 1
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "IXI001-A-1-T1.nii.gz")
    cohort = config.cohorts[1]
    constant = type(cohort)("ixi", f"{tmp_path}/{{subject}}-A-1-T1.nii.gz", fit="resize")
    (subject,) = preflight(find_subjects(constant, tiny_cohort).subjects).subjects
    with pytest.raises(VolumeError, match=rf"^{tmp_path}/IXI001-A-1-T1.nii.gz: percentiles 1 and 99 are both"):
        make_pairs(subject, config)


@pytest.mark.parametrize("darkest", [-32768, -5, 7, 1000])
def test_padding_has_the_darkest_value_and_does_not_move_the_head(darkest):
    head = ball((16, 18, 20), (4.5, 9.5, 12), 4)
    shifted = Volume(head.voxels + darkest, head.affine)
    plain, offset = (crop_pad(volume).high_from_file(volume) for volume in (head, shifted))
    np.testing.assert_allclose(offset.voxels - darkest, plain.voxels, atol=0.01)
    np.testing.assert_array_equal(offset.affine, plain.affine)


def test_no_plane_of_a_forced_shape_is_brighter_than_the_file():
    # 256 to 200 is one of the sizes where scipy.ndimage.zoom gives zeros in the last plane.
    volume = Volume(ball((256, 4, 4), (128, 1.5, 1.5), 60).voxels - 1000, np.eye(4))
    geometry = GeometryConfig((12, 14, 6), (1.6, 1.6, 5.0), (200, 4, 4), (1.0, 1.0, 1.0))
    forced = Grids.around(geometry, "resize", volume).high_from_file(volume)
    assert forced.voxels.shape == (200, 4, 4)
    assert forced.voxels[-1].max() == pytest.approx(-1000)
