import numpy as np
import pytest
from made_up_heads import SHAPE, SPACING_MM, depth_mm, places, rayleigh_head

from upfield.sharding.coverage.intensities import bias_spread, noise_floor, noise_skewness, tissue_levels
from upfield.sharding.coverage.measures import measure_volume

NOISE = np.random.default_rng(0).normal(0, 0.02, (2, 200_000)).astype(np.float32)


@pytest.mark.parametrize(
    ("air", "ratio", "skewness"),
    [
        (np.hypot(*NOISE), 1.77, 0.149),
        (np.abs(NOISE[0]), 1.12, 0.278),
        (np.maximum(NOISE[0], 0), 0.0, 1.0),
        (0.5 + NOISE[0], 25.0, 0.0),
    ],
    ids=["Rayleigh", "folded", "clipped", "normal"],
)
def test_the_law_of_noise_shows_in_air(air, ratio, skewness):
    floor, spread = noise_floor(air)
    assert floor / spread == pytest.approx(ratio, abs=0.02, rel=0.02)
    assert noise_skewness(air) == pytest.approx(skewness, abs=0.02)


def test_the_spread_of_normal_noise_is_its_standard_deviation():
    assert noise_floor(NOISE[0])[1] == pytest.approx(0.02, rel=0.01)


def test_noise_and_signal_to_noise_of_a_head_are_those_it_was_made_with():
    values = measure_volume(rayleigh_head(0.02), SPACING_MM)
    assert values["air_spread"] == pytest.approx(0.6655 * 0.02, rel=0.03)
    assert values["air_ratio"] == pytest.approx(1.77, rel=0.03)
    assert values["snr"] == pytest.approx(0.5 / (0.6655 * 0.02), rel=0.03)
    assert values["texture"] == pytest.approx(0.02 / 0.5, rel=0.2)


def test_a_margin_of_zeros_does_not_change_the_noise():
    head = rayleigh_head(0.02)
    filled = head.copy()
    filled[:6] = filled[-6:] = filled[:, :8] = 0
    whole, cut = (measure_volume(each, SPACING_MM) for each in (head, filled))
    assert cut["air_spread"] == pytest.approx(whole["air_spread"], rel=0.03)
    assert cut["fill_x"] == pytest.approx(70 / 72, abs=0.02)
    assert whole["fill_x"] == pytest.approx(70 / 84, abs=0.02)


def test_three_tissues_are_found():
    deep = depth_mm()
    tissue = np.where(deep > 40, 0.3, np.where(deep > 25, 0.6, 0.9)).astype(np.float32)
    noisy = tissue + np.random.default_rng(0).normal(0, 0.03, SHAPE).astype(np.float32)
    assert tissue_levels(noisy, deep > 10, SPACING_MM) == pytest.approx((0.3, 0.6, 0.9), abs=0.02)
    assert tissue_levels(np.full(SHAPE, 0.5, np.float32), deep > 10, SPACING_MM) is None


def test_bias_is_that_of_a_ramp_and_not_of_detail():
    inside = depth_mm() > 10
    ramp = np.broadcast_to(1 + places()[0] / 200, SHAPE).astype(np.float32)
    # Of a ball with a radius of 60 mm, 5% lie beyond 43.6 mm. The Gaussian flattens the ramp at the surface.
    assert 0.55 * 87 / 200 < bias_spread(ramp, inside, SPACING_MM) < 87 / 200
    checks = (np.indices(SHAPE).sum(axis=0) % 2 + 1).astype(np.float32)
    assert bias_spread(checks, inside, SPACING_MM) < 0.01
