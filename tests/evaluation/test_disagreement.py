"""A model that follows its input agrees with itself; a model that invents structure does not."""

import numpy as np
import pytest
from scipy import ndimage

from upfield.evaluation.disagreement import NOISE_STD, disagreement, move, restore_perturbed, shift


def draw(channels: int = 1) -> np.ndarray:
    """Draw smooth images `(6, channels, 40, 36)` in [0, 1]."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.standard_normal((6, channels, 40, 36)), (0, 0, 2, 2))
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


def middle(low: np.ndarray) -> np.ndarray:
    """Return the middle slice of the input, as a model that changes nothing would."""
    return low[:, low.shape[1] // 2].copy()


def test_move_agrees_with_scipy():
    images = draw(2)
    expected = ndimage.shift(images.astype(np.float64), (0, 0, 0.5, 0.5), order=3, mode="nearest")
    # Near the border the two differ, because they extend the image differently.
    assert np.abs(move(images, 0.5) - expected)[..., 10:-10, 10:-10].max() < 1e-5
    assert shift(images, 0.5).min() >= 0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_identity_agrees_with_itself_except_for_the_noise(channels):
    low = draw(channels)
    mirrored, shifted, noisy = restore_perturbed(low, middle(low), middle, seed=0)
    assert np.array_equal(mirrored, middle(low))
    assert np.array_equal(shifted, middle(low))
    inside = (middle(low) > 0.1) & (middle(low) < 0.9)
    assert (noisy - middle(low))[inside].std() == pytest.approx(NOISE_STD, rel=0.1)


def test_equal_outputs_have_no_disagreement():
    low = draw()
    same = np.full((6, 40, 36), 0.25, dtype=np.float32)
    assert disagreement(low, same, lambda _: same.copy(), seed=0).max() < 1e-6


def test_disagreement_is_the_standard_deviation_of_four_outputs():
    low = draw()
    given = np.random.default_rng(1).random((4, 6, 40, 36)).astype(np.float32)
    # Mirroring and moving do not change constant images, so the four outputs differ only in their level.
    given[:] = given[:, :1, :1, :1]
    calls = iter(given[1:])
    found = disagreement(low, given[0], lambda _: next(calls).copy(), seed=0)
    assert found == pytest.approx(given.std(axis=0), abs=1e-6)


def test_structure_that_does_not_move_with_the_image_is_detected():
    low = draw()

    def invents(images: np.ndarray) -> np.ndarray:
        restored = middle(images)
        restored[:, 10:14, 5:9] = 1
        return restored

    found = disagreement(low, invents(low), invents, seed=0)
    invented, elsewhere = found[:, 10:14, 5:9].mean(), found[:, 18:22, 18:30].mean()
    assert invented > 0.1
    assert elsewhere < NOISE_STD


def test_mirroring_swaps_neighbouring_slices():
    low = draw(3)
    seen: list[np.ndarray] = []

    def remember(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return middle(images)

    next(restore_perturbed(low, middle(low), remember, seed=0))
    assert np.array_equal(seen[0], low[:, ::-1, ::-1])


def test_noise_is_the_same_for_the_same_seed():
    low = draw()
    first, again, other = (disagreement(low, middle(low), middle, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
