"""A degraded low field is different each time, equal for equal keys, and keeps the order of the tissues."""

import numpy as np
import pytest

from upfield.distributed.configuration import AugmentConfig, DegradeConfig
from upfield.distributed.samples.augment import augment_pair
from upfield.distributed.samples.degrade import degrade, smooth_noise

KEY = (0, 3, 17)
ALL = DegradeConfig(gamma=(0.7, 1.4), curve=(0, 0.8), bias=(0.05, 0.2), blur_pixels=(0.2, 1), noise_std=(0.01, 0.05))
RAMP = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float16), (3, 24, 32))


def degraded(key: tuple[int, ...] = KEY, **ranges: tuple[float, float]) -> np.ndarray:
    return degrade(RAMP, DegradeConfig(**ranges), key).astype(np.float64)


def test_equal_keys_degrade_equally_and_each_epoch_sample_or_position_differently() -> None:
    np.testing.assert_array_equal(degrade(RAMP, ALL, KEY), degrade(RAMP, ALL, KEY))
    images = [degrade(RAMP, ALL, key).tobytes() for key in (KEY, (0, 4, 17), (0, 3, 18), (1, 3, 17), (*KEY, 1))]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("name", ["gamma", "curve", "bias", "blur_pixels", "noise_std"])
def test_each_range_alone_degrades_and_keeps_the_values_in_range(name: str) -> None:
    image = degrade(RAMP, DegradeConfig(**{name: getattr(ALL, name)}), KEY)
    assert image.dtype == np.float16
    assert np.abs(image.astype(float) - RAMP).max() > 0.001
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("sample", range(8))
def test_contrast_keeps_the_order_of_the_tissues_and_all_slices_share_it(sample: int) -> None:
    image = degraded((0, 0, sample), gamma=(0.5, 2), curve=(0.9, 0.9), blur_pixels=(0, 1))
    assert (np.diff(image[0, 0]) >= 0).all()
    np.testing.assert_array_equal(image[1:], image[:-1])


def test_bias_is_smooth_and_all_slices_share_it() -> None:
    flat = np.full((3, 40, 40), 0.5, np.float16)
    field = degrade(flat, DegradeConfig(bias=(0.2, 0.2)), KEY).astype(float)
    np.testing.assert_array_equal(field[1:], field[:-1])
    assert field.std() > 10 * np.abs(np.diff(field)).mean()


def test_degradation_moves_nothing_and_leaves_the_high_field() -> None:
    pair = RAMP, RAMP[:1]
    geometry = {"crop": (12, 10), "shift_pixels": 3}
    _, plain = augment_pair(*pair, AugmentConfig(**geometry), KEY)
    low, high = augment_pair(*pair, AugmentConfig(**geometry, degrade=DegradeConfig(blur_pixels=(0.3, 0.3))), KEY)
    np.testing.assert_array_equal(high, plain)
    np.testing.assert_allclose(low[:, 4:-4, 4:-4], np.concatenate([high] * 3)[:, 4:-4, 4:-4], atol=2e-3)


def test_noise_has_the_stated_strength_and_is_correlated_over_its_spacing_in_and_between_slices() -> None:
    draws = [smooth_noise(np.random.default_rng(seed), (5, 40, 40), (4.0, 1.0, 4.0)) for seed in range(30)]
    noise = np.stack(draws)
    assert noise.std() == pytest.approx(1, abs=0.05)
    between, down, across = ((noise * np.roll(noise, 1, axis)).mean() for axis in (1, 2, 3))
    assert across > 0.8
    assert between > 0.5
    assert abs(down) < 0.6 < across


def test_noise_is_rician() -> None:
    air = degrade(np.zeros((3, 80, 80), np.float16), DegradeConfig(noise_std=(0.1, 0.1)), KEY).astype(float)
    assert air.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.1)
    assert np.median(air**2) == pytest.approx(2 * np.log(2) * 0.1**2, rel=0.15)


@pytest.mark.parametrize(
    "wrong", [{"noise_std": (0.03, 0)}, {"gamma": (0, 1)}, {"curve": (0, 1.5)}, {"noise_spacing_pixels": (0.5, 2)}]
)
def test_contradictory_ranges_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"data\.augment\.degrade\.\w+: .*\. (Swap them|Correct the range)\."):
        DegradeConfig(**wrong)
