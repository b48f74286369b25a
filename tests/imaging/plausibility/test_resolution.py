import numpy as np
import pytest
from scipy import ndimage, signal

from upfield.imaging.plausibility.resolution import AXES, coarse_doubt, fine_doubt, interpolated_doubt
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
    found = coarse_doubt(GRID_MM / spacing_mm, spacing_mm) or ""
    assert sum(name in found for name in AXES) == axes


@pytest.mark.parametrize("spacing_mm", [(1.6, 1.6, 5), (5, 1.6, 1.6), (1, 1, 5), (1.6, 1.6, 1.6)])
def test_low_fields_with_a_thick_axis_are_not_of_high_resolution(spacing_mm):
    assert fine_doubt(np.array(spacing_mm)) is None
    assert "1 x 1 x 1 mm" in (fine_doubt(np.ones(3)) or "")
