from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from upfield.imaging.plausibility.brains import is_skull_stripped, stripped_doubt
from upfield.imaging.volume import Volume, read_volume

DATA = Path(__file__).parents[4] / "shared/data"
SHAPE = (60, 70, 64)
PLACES = np.stack(np.meshgrid(*[np.linspace(-1.15, 1.15, size) for size in SHAPE], indexing="ij"))
RADIUS = np.sqrt(np.square(PLACES).sum(axis=0))
FOLDS = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2)
TISSUE = 600 + 100 * FOLDS / FOLDS.std()


def volume(voxels, spacing_mm=3.0):
    return Volume(np.asarray(voxels, dtype=np.float32), np.diag([spacing_mm] * 3 + [1.0]))


BRAIN = volume(np.where(RADIUS < 0.75, TISSUE, 0), 2.5)
SKULL = np.where(RADIUS < 0.8, TISSUE, np.where(RADIUS < 0.9, 50, 800)) * (RADIUS < 1)


def test_a_brain_without_skull_is_recognised():
    assert is_skull_stripped(BRAIN)
    assert is_skull_stripped(Volume(BRAIN.voxels[:, ::-1] - 1024, BRAIN.affine))


@pytest.mark.parametrize(
    "voxels",
    [
        SKULL + 10 * np.random.default_rng(1).random(SHAPE),
        # Air may be exactly black, and a head may be as small as a brain.
        SKULL,
        # A smooth head, larger than a brain.
        np.where(RADIUS < 1, TISSUE, 0),
        np.where(RADIUS < 1, 1.0, 0) + (PLACES[0] > 1.1),
        np.ones(SHAPE) + (RADIUS > 9),
    ],
)
def test_heads_and_other_objects_are_not(voxels):
    assert not is_skull_stripped(volume(voxels))


def test_a_model_for_whole_heads_doubts_brains_and_the_other_way_round():
    assert "was trained on whole heads" in (stripped_doubt(BRAIN, False) or "")
    assert "may have been trained on whole heads" in (stripped_doubt(BRAIN, None) or "")
    assert "remove the skull" in (stripped_doubt(volume(SKULL), True) or "")
    assert (stripped_doubt(BRAIN, True), stripped_doubt(volume(SKULL), None)) == (None, None)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs real scans in ../shared/data")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t1/norm_brain_1mm_T1", True),
        ("t1/otsu_wholehead_1mm_T1", False),
        ("ixi/IXI034-HH-1260-T1", False),
        ("lowfield/lowgan_MS017_64mT_FLAIR", False),
    ],
)
def test_real_scans_are_told_apart(name, expected):
    assert is_skull_stripped(read_volume(DATA / f"{name}.nii.gz")) == expected
