"""Artefacts of a low-field scanner."""

import numpy as np
import pytest

from upfield.sharding.physics.artefacts import (
    add_motion,
    add_zipper,
    blank_margin,
    displace_along,
    smooth_magnitude,
)
from upfield.sharding.physics.smooth_field import draw_smooth_field


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_off_resonance_conserves_the_signal_along_the_readout(axis):
    rng = np.random.default_rng(0)
    shape = (40, 44, 48)
    places = np.meshgrid(*(np.linspace(-1, 1, count) for count in shape), indexing="ij")
    head = np.exp(-4 * sum(place**2 for place in places)).astype(np.float32)
    displacement = 1.5 * draw_smooth_field(rng, shape, (2.0, 2.0, 2.0), 50.0)
    moved = displace_along(head, displacement, axis)
    before, after = head.sum(axis=axis), moved.sum(axis=axis)
    inner = before > 1
    assert after[inner] == pytest.approx(before[inner], rel=0.02)
    assert np.abs(moved - head).max() > 0.02


def test_a_constant_displacement_shifts_the_line():
    line = np.arange(10, dtype=np.float32).reshape(1, 10, 1)
    moved = displace_along(line, np.full_like(line, 2.0), 1)
    assert moved.ravel()[2:] == pytest.approx(np.arange(8))


def test_motion_keeps_the_mean_and_makes_ghosts_along_the_phase_encoding_alone():
    head = np.zeros((32, 33, 4), np.float32)
    head[10:20, 12:22] = 1
    moved = add_motion(head, 2.0, 1.0, 1, np.random.default_rng(3))
    assert moved.sum(axis=1) == pytest.approx(head.sum(axis=1), abs=1e-3)
    assert np.abs(moved[15, :8]).max() > 0.01
    assert np.abs(moved[:9]).max() < 1e-5


def test_every_motion_changes_frequencies_that_were_measured():
    head = np.zeros((4, 64, 2), np.float32)
    head[:, 20:44] = 1
    measured = np.abs(np.fft.fftfreq(64)) <= 0.5 / 1.6
    for seed in range(20):
        moved = add_motion(head, 2.0, 1.6, 1, np.random.default_rng(seed))
        changes = np.abs(np.fft.fft(moved - head, axis=1))[:, measured]
        assert changes.max() > 1e-3


def test_a_zipper_is_a_line_at_one_place_of_the_readout_in_every_slice():
    quiet = np.zeros((2, 30, 20, 5), np.float32)
    zipped = add_zipper(quiet, 6.0, 0, 2, np.random.default_rng(1))
    power = np.square(zipped).sum(axis=0)
    rows = power.sum(axis=(1, 2))
    assert rows[rows > 0.01 * rows.max()].size <= 7
    assert (power[rows.argmax()].sum(axis=0) > 0).all()


def test_smooth_fields_have_the_stated_strength():
    field = draw_smooth_field(np.random.default_rng(0), (30, 40, 20), (4.0, 4.0, 8.0), 90.0)
    assert field.mean() == pytest.approx(0, abs=1e-3)
    assert np.square(field).mean() == pytest.approx(1, rel=1e-3)
    assert np.abs(np.diff(field, axis=0)).max() < 0.5


def test_smoothing_keeps_the_level_and_narrows_the_noise_as_its_kernel_says():
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal((30, 30, 30)).astype(np.float32)
    smooth = smooth_magnitude(noise, 0.2)
    assert smooth.mean() == pytest.approx(1, abs=0.005)
    assert smooth.std() == pytest.approx(0.1 * (0.8**2 + 2 * 0.1**2) ** 1.5, rel=0.05)


def test_a_margin_blanks_the_corners_and_spares_the_middle_of_each_face():
    blank = blank_margin(np.ones((40, 40, 20), np.float32), np.array([8.0, 8.0, 4.0]))
    assert blank[0, 0, 0] == blank[3, 0, 0] == blank[0, 0, 10] == 0
    assert blank[0, 20, 10] == blank[20, 0, 10] == blank[20, 20, 0] == 1
    assert blank[20:].sum() == blank[:20].sum() > 0.6 * blank[20:].size
