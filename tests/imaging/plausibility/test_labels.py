import numpy as np
import pytest
from scipy import ndimage

from upfield.imaging.plausibility.labels import label_doubt

generator = np.random.default_rng(0)
SMOOTH = ndimage.gaussian_filter(generator.standard_normal((40, 40, 40)), 4)
HEAD = np.clip(SMOOTH / SMOOTH.max(), 0, 1).astype(np.float32)


@pytest.mark.parametrize("num_labels", [1, 5, 50, 300])
def test_whole_numbers_in_flat_regions_are_doubted(num_labels):
    # Labels of neighbouring structures are not neighbouring numbers.
    names = generator.permutation(3 * num_labels)[: num_labels + 1].astype(np.float32)
    names[0] = 0
    labels = names[np.rint(HEAD * num_labels).astype(int)].repeat(4, axis=1)
    assert "different values, all of them whole numbers" in (label_doubt(labels) or "")


def test_scans_of_few_bits_and_maps_of_probabilities_are_not():
    noisy = np.clip(HEAD + 0.02 * generator.standard_normal(HEAD.shape), 0, 1).astype(np.float32)
    assert label_doubt(np.rint(255 * noisy)) is None
    assert label_doubt(np.rint(100 * noisy)) is None
    assert label_doubt(noisy) is None
    assert label_doubt(np.rint(noisy * 20) / 20) is None
