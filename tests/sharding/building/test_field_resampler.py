from dataclasses import replace

import numpy as np
import pytest
from heads import whole_head

from upfield.imaging.air import estimate_air
from upfield.imaging.volume import Volume
from upfield.sharding.building.field_resampler import FieldResampler, head_centre, to_world
from upfield.sharding.configuration import GeometryConfig

GEOMETRY = GeometryConfig((12, 14, 6), (1.6, 1.6, 5.0), (20, 24, 28), (1.0, 1.0, 1.0))


def ball(shape, centre, radius, spacing_mm=(1.0, 1.0, 1.0)):
    places = np.ix_(*((np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing_mm, strict=True)))
    inside = sum(place**2 for place in places) <= radius**2
    return Volume(np.asarray(inside, dtype=np.float32), np.diag([*spacing_mm, 1.0]))


def middle(voxels):
    return [
        np.average(np.arange(n), weights=voxels.sum(axis=tuple({0, 1, 2} - {i}))) for i, n in enumerate(voxels.shape)
    ]


@pytest.mark.parametrize("shift", [(0, 0, 0), (4, -3, 5)])
def test_crop_pad_centres_a_head_wherever_it_lies(shift):
    head = ball((40, 44, 48), np.array([20, 22, 24]) + shift, 8)
    box = high_from_file(crop_pad(head), head).voxels
    np.testing.assert_allclose(middle(box), [9.5, 11.5, 13.5], atol=0.6)
    assert box.sum() == pytest.approx(head.voxels.sum(), rel=0.02)


def test_crop_pad_cuts_the_neck_of_a_tall_head_not_its_top():
    tall = np.zeros((20, 24, 60), np.float32)
    tall[5:15, 6:18, :50] = 1
    centre = head_centre(Volume(tall, np.eye(4)), estimate_air(tall), np.array([20.0, 24.0, 28.0]))
    # The box ends just above the topmost plane, 49.
    assert 49 <= centre[2] + 14 <= 52


def test_crop_pad_brings_both_fields_to_the_same_place():
    high = ball((30, 30, 40), (13, 16, 22), 8)
    low = ball((20, 20, 10), (13 / 1.5, 16 / 1.5, 22 / 4), 8, (1.5, 1.5, 4.0))
    resampler = crop_pad(high)
    up = resampler.low_to_high(low_from_file(resampler, low).voxels)
    np.testing.assert_allclose(middle(np.clip(up, 0, 1)), middle(high_from_file(resampler, high).voxels), atol=0.5)


@pytest.mark.parametrize("fit", ["resize", "crop_pad"])
def test_volumes_on_the_grids_have_scanner_coordinates(fit):
    where_mm = np.array([3.0, 40.0, -7.0])
    high = ball((26, 30, 34), (13, 16, 18), 6)
    low = ball((17, 20, 8), (13 / 1.5, 16 / 1.5, 18 / 4), 6, (1.5, 1.5, 4.0))
    resampler = around(fit, moved(high, where_mm))
    expected = where_mm + np.array([13, 16, 18])
    on_grid = high_from_file(resampler, moved(high, where_mm))
    for volume in (
        on_grid,
        resampler.high_to_low(on_grid),
        low_from_file(resampler, moved(low, where_mm)),
    ):
        centre = np.array(middle(np.clip(volume.voxels, 0, 1)))
        np.testing.assert_allclose(to_world(volume.affine, centre), expected, atol=0.6)


def moved(volume, where_mm):
    affine = volume.affine.copy()
    affine[:3, 3] += where_mm
    return Volume(volume.voxels, affine)


def around(fit, high, geometry=GEOMETRY):
    return FieldResampler.around(geometry, fit, high, estimate_air(high.voxels))


def crop_pad(high):
    return around("crop_pad", high)


def high_from_file(resampler, volume):
    return resampler.high_from_file(volume, estimate_air(volume.voxels))


def low_from_file(resampler, volume):
    return resampler.low_from_file(volume, estimate_air(volume.voxels))


@pytest.mark.parametrize("darkest", [-32768, -5, 7, 1000])
def test_padding_has_the_darkest_value_and_does_not_move_the_head(darkest):
    head = ball((16, 18, 20), (4.5, 9.5, 12), 4)
    shifted = Volume(head.voxels + darkest, head.affine)
    plain, offset = (high_from_file(crop_pad(volume), volume) for volume in (head, shifted))
    np.testing.assert_allclose(offset.voxels - darkest, plain.voxels, atol=0.01)
    np.testing.assert_array_equal(offset.affine, plain.affine)


def test_no_plane_of_a_forced_shape_is_brighter_than_the_file():
    # 256 to 200 is one of the sizes where scipy.ndimage.zoom gives zeros in the last plane.
    volume = Volume(ball((256, 4, 4), (128, 1.5, 1.5), 60).voxels - 1000, np.eye(4))
    geometry = GeometryConfig((12, 14, 6), (1.6, 1.6, 5.0), (200, 4, 4), (1.0, 1.0, 1.0))
    forced = high_from_file(around("resize", volume, geometry), volume)
    assert forced.voxels.shape == (200, 4, 4)
    assert forced.voxels[-1].max() == pytest.approx(-1000)


@pytest.mark.parametrize(("fit", "step_mm"), [("resize", 29 / 5), ("crop_pad", 5)])
def test_a_grid_that_is_coarser_than_the_scan_averages_if_asked_to(fit, step_mm):
    # A low field acquired across, with a pattern of 12 mm along the body.
    wave = np.cos(2 * np.pi / 12 * (np.arange(30) - 14))
    voxels = np.broadcast_to(2 + wave, (6, 14, 30)).astype(np.float32)
    low = Volume(voxels, np.diag([5.0, 1.6, 1.0, 1.0]))

    def line(average):
        return low_from_file(around(fit, low, replace(GEOMETRY, average=average)), low).voxels[6, 7, 1:-1]

    np.testing.assert_allclose(line(True) - 2, np.sinc(step_mm / 12) * (line(False) - 2), atol=0.02)


def test_synthetic_low_fields_are_averaged_if_asked_to():
    high = Volume(np.random.default_rng(0).random((20, 24, 28), np.float32), np.eye(4))
    resampler = crop_pad(high)
    sampled, averaged = (resampler.high_to_low(high, average=average).voxels for average in (False, True))
    # 1.6 x 1.6 x 5 voxels of noise in one.
    assert averaged.std() < 0.5 * sampled.std()
    np.testing.assert_array_equal(sampled, resampler.high_to_low(high).voxels)


@pytest.mark.parametrize("noise", [0, 50, 100])
def test_noise_of_a_tenth_of_the_head_does_not_move_the_box(noise):
    rng = np.random.default_rng(0)
    clean = np.pad(whole_head(0), [(5, 35), (30, 2), (20, 10)])
    noisy = np.hypot(clean + rng.normal(0, noise, clean.shape), rng.normal(0, noise, clean.shape)).astype(np.float32)
    box_mm = np.array([50.0, 60.0, 70.0])
    centre = head_centre(Volume(noisy, np.eye(4)), estimate_air(noisy), box_mm)
    np.testing.assert_allclose(centre, [24.5, 51.5, 43.5], atol=1)


@pytest.mark.parametrize("margin", [1, 2, 7])
def test_the_box_lies_where_it_did_whatever_the_margin(margin):
    head, wide = whole_head(), np.pad(whole_head(), [(margin, 0)] * 3)
    box_mm = np.array([49.0, 60.0, 70.0])
    centres = [head_centre(Volume(voxels, np.eye(4)), estimate_air(voxels), box_mm) for voxels in (head, wide)]
    np.testing.assert_array_equal(centres[1] - margin, centres[0])
