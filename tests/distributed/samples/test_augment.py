"""Augmentation is reproducible, moves both fields equally, and changes the intensity of the low field only."""

import numpy as np
import pytest

from upfield.distributed.configuration import AugmentConfig
from upfield.distributed.samples.augment import augment_pair

KEY = (0, 3, 17)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    high = np.random.default_rng(0).random((1, 20, 24)).astype(np.float16)
    return np.concatenate([high] * 3), high


def test_nothing_is_changed_by_default(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for found, expected in zip(augment_pair(*pair, AugmentConfig(), KEY), pair, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_equal_keys_change_a_pair_equally_and_other_keys_differently(pair: tuple[np.ndarray, np.ndarray]) -> None:
    config = AugmentConfig(crop=(9, 12), shift_pixels=4, intensity_jitter=0.2)
    first, again, later = (augment_pair(*pair, config, key)[0] for key in (KEY, KEY, (0, 4, 17)))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (3, 9, 12)
    assert (first != later).any()


@pytest.mark.parametrize("config", [AugmentConfig(crop=(10, 9)), AugmentConfig(shift_pixels=5)])
def test_both_fields_move_together(pair: tuple[np.ndarray, np.ndarray], config: AugmentConfig) -> None:
    low, high = augment_pair(*pair, config, KEY)
    np.testing.assert_array_equal(low, np.concatenate([high] * 3))
    assert high.shape == (1, *(config.crop or (20, 24)))


def test_a_shift_is_by_whole_pixels_and_fills_with_air(pair: tuple[np.ndarray, np.ndarray]) -> None:
    seen = set()
    for sample in range(40):
        _, high = augment_pair(*pair, AugmentConfig(shift_pixels=2), (0, 0, sample))
        matches = [
            (down, across)
            for down in range(-2, 3)
            for across in range(-2, 3)
            if np.array_equal(high[0], moved(pair[1][0], down, across))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 10


def moved(image: np.ndarray, down: int, across: int) -> np.ndarray:
    padded = np.pad(image, 2)
    return padded[2 - down : 22 - down, 2 - across : 26 - across]


def test_intensity_changes_only_in_the_low_field(pair: tuple[np.ndarray, np.ndarray]) -> None:
    low, high = augment_pair(*pair, AugmentConfig(intensity_jitter=0.3), KEY)
    np.testing.assert_array_equal(high, pair[1])
    assert (low != pair[0]).any()
    assert low.min() >= 0
    assert low.max() <= 1
    order = np.argsort(pair[0].ravel(), kind="stable")
    assert (np.diff(low.ravel()[order].astype(float)) >= 0).all()


@pytest.mark.parametrize("wrong", [{"crop": (8, 20)}, {"shift_pixels": -1}, {"intensity_jitter": 1.0}])
def test_impossible_values_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"data.augment.*expected .* found"):
        AugmentConfig(**wrong)
