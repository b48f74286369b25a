import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from upfield.imaging.resample import box_centre, resample_box, zoom_to
from upfield.sharding.building.pairs.subject_pairs import make_pairs
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import Source, Subject
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.shardset.sample_key import Unit

LOW_SHAPE, HIGH_SHAPE = (112, 138, 40), (179, 221, 200)


def smooth_noise(shape, sigma=1.5, seed=0):
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    smooth = np.asarray(ndimage.gaussian_filter(noise, sigma), dtype=np.float32)
    return smooth - smooth.min()  # The darkest voxel is zero, as in scans.


def plain_zoom(voxels, shape):
    return np.asarray(ndimage.zoom(voxels, np.array(shape) / voxels.shape, order=3))


def plain_scale(voxels):
    low, high = np.percentile(voxels, [1, 99])
    return (np.clip(voxels, low, high) - low) / (high - low)


def indices_mm(shape, spacing_mm):
    """Return the world coordinate in mm of each voxel along each axis. The centre of the box is at 0."""
    return np.ix_(*((np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing_mm, strict=True)))


@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((12, 14, 6), (20, 24, 28)),
        ((20, 24, 28), (12, 14, 6)),
        ((17, 9, 11), (8, 27, 11)),
        ((5, 2, 3), (7, 9, 2)),
        (LOW_SHAPE, HIGH_SHAPE),
    ],
)
def test_zoom_equals_scipy(shape, target):
    voxels = smooth_noise(shape, sigma=1.0)
    expected = plain_zoom(voxels, target)
    found = zoom_to(voxels, target)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize(("old", "new"), [(22, 20), (240, 112), (256, 200)])
def test_zoom_keeps_the_last_plane_that_scipy_loses(old, new):
    voxels = smooth_noise((old, 6, 5)) + 1
    expected, found = plain_zoom(voxels, (new, 6, 5)), zoom_to(voxels, (new, 6, 5))
    assert not expected[-1].any()
    np.testing.assert_allclose(found[-1], voxels[-1], atol=1e-5 * np.ptp(voxels))
    np.testing.assert_allclose(found[:-1], expected[:-1], atol=1e-5 * np.ptp(voxels))


def test_zoom_to_the_same_shape_changes_nothing():
    voxels = smooth_noise((5, 6, 7))
    np.testing.assert_array_equal(zoom_to(voxels, (5, 6, 7)), voxels)


def test_pairs_from_psr_volumes_equal_those_of_a_plain_scipy_pipeline(tmp_path):
    low, high = smooth_noise((10, 13, 7), seed=1), smooth_noise((18, 21, 31), seed=2)
    geometry = GeometryConfig((12, 14, 6), (1.6, 1.6, 5.0), (20, 24, 28), (1.0, 1.0, 1.0))
    sources = []
    for name, voxels in (("low", low), ("high", high)):
        stored = voxels[:, ::-1].transpose(1, 2, 0)  # R-A-S to P-S-R
        affine = np.array([[0, 0, 1, 0], [-1, 0, 0, voxels.shape[1] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        assert nib.aff2axcodes(affine) == ("P", "S", "R")
        nib.Nifti1Image(np.ascontiguousarray(stored), affine).to_filename(tmp_path / f"{name}.nii")
        sources.append(Source((tmp_path / f"{name}.nii",), stacked=False))
    unit = Unit("a", "1", "real", 0)
    subject = Subject("a", "1", "1", "train", sources[1], sources[0], "resize", (unit,))
    (with_headers,) = preflight([subject]).subjects
    (pair,) = make_pairs(with_headers, ShardConfig("out", geometry=geometry)).pairs
    expected_low = plain_scale(plain_zoom(plain_zoom(low, geometry.low_shape), geometry.high_shape))
    expected_high = plain_scale(plain_zoom(high, geometry.high_shape))
    for x in range(geometry.high_shape[0]):
        np.testing.assert_allclose(pair.low[x], expected_low[x].astype(np.float16), atol=1e-3)
        np.testing.assert_allclose(pair.high[x], expected_high[x].astype(np.float16), atol=1e-3)


def test_box_keeps_every_world_position():
    spacing_mm, new_spacing_mm = np.array([1.5, 0.7, 2.0]), np.array([1.0, 1.0, 1.6])
    x, y, z = indices_mm((30, 60, 25), spacing_mm)
    voxels = (2 * x - y + 0.5 * z).astype(np.float32)
    found = resample_box(voxels, spacing_mm, box_centre(voxels.shape), (20, 24, 18), new_spacing_mm)
    x, y, z = indices_mm((20, 24, 18), new_spacing_mm)
    # The spline mirrors the ramp at its ends. From the third voxel on, this has no effect.
    np.testing.assert_allclose(found, 2 * x - y + 0.5 * z, atol=0.05)


def test_box_keeps_proportions():
    x, y, z = indices_mm((40, 50, 12), (1.0, 1.0, 4.0))
    sphere = (1 / (1 + np.exp(np.sqrt(x**2 + y**2 + z**2) - 12))).astype(np.float32)
    found = resample_box(sphere, np.array([1.0, 1, 4]), box_centre(sphere.shape), (36, 40, 44), np.array([0.9, 0.8, 1]))
    extents_mm = [
        (found > 0.5).any(axis=others).sum() * step for others, step in (((1, 2), 0.9), ((0, 2), 0.8), ((0, 1), 1.0))
    ]
    np.testing.assert_allclose(extents_mm, 24, atol=1.5)


def test_box_beyond_the_image_is_zero():
    ones = np.ones((4, 5, 6), np.float32)
    found = resample_box(ones, np.ones(3), box_centre(ones.shape), (8, 9, 10), np.ones(3))
    np.testing.assert_allclose(found[2:-2, 2:-2, 2:-2], 1, atol=1e-6)
    found[2:-2, 2:-2, 2:-2] = 0
    assert not found.any()


def test_box_of_the_same_grid_changes_nothing():
    voxels = smooth_noise((6, 7, 8))
    found = resample_box(voxels, np.ones(3), box_centre(voxels.shape), (6, 7, 8), np.ones(3))
    np.testing.assert_allclose(found, voxels, atol=1e-6)


def test_box_around_another_centre_is_a_crop():
    voxels = smooth_noise((10, 11, 12))
    found = resample_box(voxels, np.ones(3), np.array([4.0, 5.0, 6.0]), (3, 3, 3), np.ones(3))
    np.testing.assert_allclose(found, voxels[3:6, 4:7, 5:8], atol=1e-6)


def test_a_box_far_larger_than_the_volume_is_padded_with_zero():
    found = resample_box(
        np.ones((4, 5, 6), np.float32), np.ones(3), np.array([1.3, 2.2, 2.7]), (179, 20, 20), np.ones(3)
    )
    assert found.shape == (179, 20, 20)
    assert not found[:80].any()
    assert not found[-80:].any()
    assert found.max() > 0.9


@pytest.mark.parametrize("resize", [False, True])
def test_averages_are_those_of_thick_slices(resize):
    # A pattern of 6 mm, on voxels of 0.5 mm and then on slices of 5 mm. A slice averages a wave to sinc(5 / 6) of it.
    num_in, num_out, wave = 401, 41, 2 * np.pi / 6

    def sample(average):
        voxels = np.tile(np.cos(wave * 0.5 * (np.arange(num_in) - 200))[:, None, None], (1, 3, 3)).astype(np.float32)
        if resize:
            return zoom_to(voxels, (num_out, 3, 3), average=average)[:, 1, 1]
        spacings_mm = np.array([0.5, 1, 1]), np.array([5.0, 1, 1])
        return resample_box(
            voxels, spacings_mm[0], box_centre(voxels.shape), (num_out, 3, 3), spacings_mm[1], average=average
        )[:, 1, 1]

    samples = np.cos(wave * 5 * (np.arange(num_out) - num_out // 2))
    np.testing.assert_allclose(sample(False)[1:-1], samples[1:-1], atol=2e-3)
    np.testing.assert_allclose(sample(True)[1:-1], samples[1:-1] * np.sinc(5 / 6), atol=2e-3)


def test_averaging_changes_nothing_on_a_grid_as_fine_as_the_volume():
    voxels = np.random.default_rng(0).random((12, 13, 14), np.float32)
    centre = box_centre(voxels.shape)
    for spacing_mm in ((1, 1, 1), (0.9375, 0.9375, 1.2), (1.6, 1.6, 5)):
        boxes = [
            resample_box(voxels, np.array(spacing_mm), centre, (9, 9, 9), np.ones(3), average=average)
            for average in (False, True)
        ]
        np.testing.assert_array_equal(boxes[0], boxes[1])


def test_an_average_of_a_constant_is_constant_up_to_the_border_and_zero_outside():
    ones = np.ones((20, 3, 3), np.float32)
    box = resample_box(ones, np.ones(3), box_centre(ones.shape), (9, 3, 3), np.array([3.0, 1, 1]), average=True)
    np.testing.assert_allclose(box[:, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(zoom_to(ones, (7, 3, 3), average=True), 1, atol=1e-6)
