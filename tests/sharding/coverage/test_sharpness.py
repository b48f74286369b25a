import numpy as np
import pytest
from made_up_heads import SHAPE, SPACING_MM, blurred_ball, depth_mm

from upfield.sharding.coverage.sharpness import bandwidth, edge_width, power_spectrum, spectral_slope

INSIDE = depth_mm() > 16


def filtered_noise(amplitude):
    """Return noise `(X, Y, Z)` whose amplitude at each frequency, in cycles per mm along three axes, is given."""
    noise = np.fft.rfftn(np.random.default_rng(0).normal(size=SHAPE))
    frequencies = [np.fft.fftfreq(size, 2.0) for size in SHAPE[:2]] + [np.fft.rfftfreq(SHAPE[2], 2.0)]
    return np.fft.irfftn(noise * amplitude(*np.meshgrid(*frequencies, indexing="ij")), SHAPE, axes=(0, 1, 2)).astype(
        np.float32
    )


@pytest.mark.parametrize("axis", range(3))
def test_the_width_of_an_edge_is_that_of_its_blur(axis):
    fwhm_mm = np.full(3, 6.0)
    fwhm_mm[axis] = 9.0
    ball = blurred_ball(fwhm_mm)
    assert edge_width(ball, depth_mm() > 0, SPACING_MM, axis) == pytest.approx(9, rel=0.15)
    assert edge_width(ball, depth_mm() > 0, SPACING_MM, (axis + 1) % 3) == pytest.approx(6, rel=0.15)


def test_a_head_that_fills_the_image_has_no_edge():
    assert edge_width(np.ones(SHAPE, np.float32), np.ones(SHAPE, bool), SPACING_MM, 0) is None


def test_bandwidth_is_that_of_band_limited_noise():
    limits = (0.05, 0.1, 0.2)
    noise = filtered_noise(lambda *each: np.prod([abs(f) < most for f, most in zip(each, limits, strict=True)], axis=0))
    spectrum = power_spectrum(noise, INSIDE, SPACING_MM)
    assert [bandwidth(*spectrum, axis) for axis in range(3)] == pytest.approx(
        [0.95 * most for most in limits], rel=0.08
    )


def test_slope_is_that_of_the_power_law():
    noise = filtered_noise(lambda x, y, z: np.maximum(np.sqrt(x**2 + y**2 + z**2), 0.002) ** -1.5)
    assert spectral_slope(*power_spectrum(noise, INSIDE, SPACING_MM)) == pytest.approx(-3, abs=0.3)
