import numpy as np
import pytest
from scipy import ndimage, signal

from upfield.imaging.extent import AXES, Extent
from upfield.imaging.plausibility.resolution import (
    coarse_doubt,
    fine_doubt,
    finer_low_doubt,
    interpolated_doubt,
    sample_distance,
    sampling_doubt,
    sharp_doubt,
)
from upfield.imaging.volume import Volume

GRID_MM = np.ones(3)
generator = np.random.default_rng(0)


def noise(shape):
    """Structure of all sizes, with some noise."""
    voxels = sum(
        2**octave * ndimage.gaussian_filter(generator.standard_normal(shape), 2**octave) for octave in range(4)
    )
    return np.asarray(500 + 200 * voxels + 5 * generator.standard_normal(shape), dtype=np.float32)


SHARP, COARSE = noise((64, 70, 96)), noise((32, 35, 48))


def zoom(voxels, factor, **options):
    return np.asarray(ndimage.zoom(voxels, factor, **options), dtype=np.float32)


def extent(shape=(20, 30, 40), spacing_mm=(1, 1, 1)):
    return Extent(np.diag([*spacing_mm, 1.0]), np.array(shape), is_placed=True)


def sinc(voxels):
    for axis in range(3):
        voxels = np.asarray(signal.resample(voxels, 2 * voxels.shape[axis], axis=axis), dtype=np.float32)
    return voxels


@pytest.mark.parametrize(
    "voxels",
    [
        zoom(COARSE, 2, order=1),
        zoom(COARSE, 2, order=3),
        zoom(COARSE, 2, order=1, grid_mode=True, mode="nearest"),
        np.rint(zoom(COARSE, 2, order=3, grid_mode=True, mode="nearest")),
        sinc(COARSE),
        COARSE.repeat(2, 0).repeat(2, 1).repeat(2, 2),
        # Slices of 2 mm.
        zoom(COARSE, (1, 1, 2), order=1),
    ],
)
def test_high_fields_interpolated_from_2_mm_are_doubted(voxels):
    assert "inferior-superior, as after interpolation" in (interpolated_doubt(Volume(voxels, np.eye(4)), GRID_MM) or "")


@pytest.mark.parametrize(
    ("voxels", "spacing_mm"),
    [
        (SHARP, 1),
        (np.rint(SHARP / 8), 1),
        (ndimage.shift(SHARP, 0.5, order=1), 1),
        (zoom(SHARP, 1.25, order=1), 1),
        # Finer than the grid: what matters is the detail that the grid can hold.
        (zoom(SHARP, 2, order=3), 0.5),
        # Black margins repeat planes, too.
        (np.pad(SHARP, 60), 1),
        (SHARP[:20, :24, :28], 1),
    ],
)
def test_original_high_fields_are_not(voxels, spacing_mm):
    volume = Volume(np.asarray(voxels, dtype=np.float32), np.diag([spacing_mm] * 3 + [1.0]))
    assert interpolated_doubt(volume, GRID_MM) is None


@pytest.mark.parametrize(("spacing_mm", "axes"), [((2, 2, 2), 3), ((0.9, 0.9, 2), 1), ((0.94, 0.94, 1.2), 0)])
def test_coarse_high_fields_are_doubted_per_axis(spacing_mm, axes):
    spacing_mm = np.array(spacing_mm)
    found = coarse_doubt(spacing_mm, GRID_MM) or ""
    assert sum(name in found for name in AXES) == axes


@pytest.mark.parametrize("spacing_mm", [(1.6, 1.6, 5), (5, 1.6, 1.6), (1, 1, 5), (1.6, 1.6, 1.6)])
def test_low_fields_with_a_thick_axis_are_not_of_high_resolution(spacing_mm):
    assert fine_doubt(np.array(spacing_mm)) is None
    assert "1 x 1 x 1 mm" in (fine_doubt(np.ones(3)) or "")


@pytest.mark.parametrize(
    ("voxels", "spacing_mm", "words"),
    [
        (SHARP, 1, "sharp edges along all axes"),
        (zoom(COARSE, 2, order=3), 1, "may have been interpolated"),
        (SHARP[:30, :30, :30], 1, "check that it is an original"),
        (SHARP, 1.6, None),
    ],
)
def test_a_scan_that_is_already_sharp_differs_from_an_interpolated_one(voxels, spacing_mm, words):
    doubt = sharp_doubt(Volume(voxels, np.diag([spacing_mm] * 3 + [1.0])), GRID_MM)
    assert doubt is None if words is None else words in doubt


def test_a_low_field_with_smaller_voxels_causes_a_warning():
    fine, coarse = extent(spacing_mm=(1, 1, 1)), extent(spacing_mm=(1.6, 1.6, 5))
    assert finer_low_doubt(coarse, fine) is None
    assert finer_low_doubt(fine, fine) is None
    warning = finer_low_doubt(fine, coarse)
    assert warning is not None
    assert (
        "the low field has smaller voxels (1 mm3) than the high field (13 mm3); check that the two are not exchanged"
        in warning
    )


LOW, HIGH = ((112, 138, 40), (1.6, 1.6, 5.0)), ((179, 221, 200), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("spacing_mm", "grid", "axes"),
    [
        ((5.0, 1.6, 1.6), LOW, ["inferior-superior (1.6 mm against 5 mm)"]),
        ((1.6, 5.0, 1.6), LOW, ["inferior-superior (1.6 mm against 5 mm)"]),
        ((1.0, 1.0, 5.0), LOW, ["left-right (1 mm against 1.6 mm)", "posterior-anterior (1 mm against 1.6 mm)"]),
        (
            (0.5, 0.5, 0.5),
            HIGH,
            ["left-right (0.5", "posterior-anterior (0.5", "inferior-superior (0.5 mm against 1 mm)"],
        ),
        # Hyperfine's T1, T2 and FLAIR, IXI, and heads of 0.7 and 2/3 mm.
        ((1.6, 1.6, 5.0), LOW, []),
        ((1.5, 1.5, 5.0), LOW, []),
        ((1.7, 1.7, 5.0), LOW, []),
        ((1.2, 0.9375, 0.9375), HIGH, []),
        ((0.7, 0.667, 0.6667), HIGH, []),
        ((2.0, 2.0, 2.0), HIGH, []),
    ],
)
def test_scans_that_are_much_finer_than_their_grid_are_reported_by_axis(spacing_mm, grid, axes):
    scan = extent(spacing_mm=spacing_mm)
    found = sampling_doubt("the scan", scan.spacing_mm, sample_distance(scan, "crop_pad", *grid))
    assert bool(found) == bool(axes)
    assert all(axis in (found or "") for axis in axes)


def test_a_forced_shape_is_compared_by_the_distance_of_its_samples():
    scan = extent((39, 39, 39), spacing_mm=(5, 5, 5))
    assert sample_distance(scan, "resize", (39, 39, 39), (1, 1, 1)).tolist() == [5, 5, 5]
    scan = extent((40, 40, 118), spacing_mm=(5, 5, 1.6))
    found = sampling_doubt("the scan", scan.spacing_mm, sample_distance(scan, "resize", (40, 40, 40), (1, 1, 1)))
    assert found is not None
    assert "finer than the grid along inferior-superior (1.6 mm against 4.8 mm)" in found


def test_a_low_field_that_is_finer_than_the_high_field_along_one_axis_is_doubtful():
    low, high = extent(spacing_mm=(1.6, 1.6, 5)), extent(spacing_mm=(5, 0.5, 0.5))
    found = finer_low_doubt(low, high)
    assert found is not None
    assert "the low field is finer than the high field along left-right (1.6 mm against 5 mm)" in found
    assert finer_low_doubt(low, extent(spacing_mm=(2, 2, 2))) is None
