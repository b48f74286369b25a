"""Resolution: truncated k-space and slice profiles."""

import numpy as np
import pytest

from upfield.sharding.physics.point_spread import OVERSAMPLING, k_space_operator, slice_operator, tukey


def response(operator, line):
    return operator.apply(np.asarray(line, np.float32).reshape(-1, 1, 1), 0).ravel()


@pytest.mark.parametrize(("num_in", "taper"), [(40, 0.0), (41, 0.5), (37, 1.0)])
def test_truncation_agrees_with_a_direct_fourier_transform(num_in, taper):
    step, zero_filling, num_out = 1.6, 1.2, 23
    line = np.random.default_rng(0).standard_normal(num_in)
    period = int(np.ceil(num_in * OVERSAMPLING))
    places_in = np.arange(num_in) - (num_in - 1) / 2
    places_out = (np.arange(num_out) - (num_out - 1) / 2) * step
    expected = np.zeros(num_out, complex)
    for index in range(-(period // 2), (period + 1) // 2):
        frequency = index / period
        weight = tukey(np.array([abs(frequency) * 2 * step * zero_filling]), taper)[0]
        coefficient = (line * np.exp(-2j * np.pi * frequency * places_in)).sum()
        expected += weight * coefficient * np.exp(2j * np.pi * frequency * places_out) / period
    found = response(k_space_operator(num_in, num_out, step, zero_filling, taper), line)
    assert found == pytest.approx(np.real(expected), abs=1e-5)
    assert np.imag(expected) == pytest.approx(0, abs=1e-9)


def test_truncation_keeps_a_constant_and_rings_without_a_taper():
    middle = slice(10, -10)
    edge = np.repeat([0.0, 1.0], 40)
    sharp, smooth = (response(k_space_operator(80, 80, 1.0, 3.0, taper), edge)[middle] for taper in (0.0, 1.0))
    assert sharp.max() > 1.05
    assert smooth.max() < 1.02


@pytest.mark.parametrize("edge", [0.0, 0.4, 1.0])
def test_a_slice_is_as_thick_at_half_maximum_as_stated(edge):
    operator = slice_operator(101, 21, 5.0, 6.0, edge)
    profile = np.array([response(operator, np.eye(101)[i])[10] for i in range(101)])
    # A linear interpolation between voxels finds the half maximum.
    half = np.flatnonzero(profile >= profile.max() / 2 - 1e-6)
    assert half[-1] - half[0] + 1 == pytest.approx(6, abs=1.01)
    assert profile.sum() == pytest.approx(1, abs=1e-3)
    assert np.count_nonzero(profile) == pytest.approx(6 * (1 + edge), abs=2)


def test_a_gap_between_slices_hides_what_lies_in_it():
    operator = slice_operator(100, 10, 10.0, 5.0, 0.0)
    line = np.zeros(100)
    line[9:11] = 1
    assert response(operator, line) == pytest.approx(np.zeros(10), abs=1e-6)
