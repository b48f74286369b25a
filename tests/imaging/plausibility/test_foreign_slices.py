from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from upfield.imaging.plausibility.foreign_slices import find_foreign_slices, foreign_slices_doubt
from upfield.imaging.volume import read_volume

DATA = Path(__file__).parents[4] / "shared/data"
SHAPE = (48, 56, 24)


@pytest.fixture(scope="module")
def head():
    """A noisy head `(48, 56, 24)`."""
    return scan(0)


def scan(seed):
    """Draw a ball of smooth structure with noise."""
    generator = np.random.default_rng(seed)
    radius = np.linalg.norm(np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")), axis=0)
    folds = ndimage.gaussian_filter(generator.standard_normal(SHAPE), 2)
    head = (0.5 + 0.2 * folds / folds.std()) * (radius < 0.9) + 0.03 * generator.standard_normal(SHAPE)
    return (900 * np.abs(head)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_of_another_head_is_found(head, axis):
    assert find_foreign_slices(head, axis) == []
    mixed, middle = np.moveaxis(head.copy(), axis, 0), head.shape[axis] // 2
    mixed[middle] = np.moveaxis(scan(1), axis, 0)[middle + 3]
    assert find_foreign_slices(np.moveaxis(mixed, 0, axis), axis) == [middle]


@pytest.mark.parametrize("factor", [0.1, 0.5, 2, 20])
def test_a_slice_on_another_scale_is_found(head, factor):
    scaled = head.copy()
    scaled[:, :, [9, 14]] *= factor
    assert find_foreign_slices(scaled, 2) == [9, 14]


def test_slices_of_noise_and_short_stacks_are_not_judged(head):
    assert find_foreign_slices(np.random.default_rng(0).random(SHAPE, np.float32), 2) == []
    assert find_foreign_slices(head[:, :, 10:17], 2) == []
    assert find_foreign_slices(np.zeros(SHAPE, np.float32), 2) == []


@pytest.mark.skipif(not DATA.is_dir(), reason="there are no real scans in shared/data")
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", ["lowfield/lowgan_MS017_64mT_T1.nii.gz", "ixi/IXI012-HH-1211-T1.nii.gz"])
def test_real_scans_have_no_foreign_slices(name, axis):
    assert find_foreign_slices(read_volume(DATA / name).voxels, axis) == []


def test_the_doubt_counts_and_lists_the_slices():
    assert foreign_slices_doubt([4], 40).startswith("1 of 40 slices does not fit between the two neighbours")
    assert "(counted from 0: 1, 2, 3, 4, 5, ...)" in foreign_slices_doubt([1, 2, 3, 4, 5, 6], 40)
