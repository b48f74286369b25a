"""Acquisition of a signal by the simulated scanner."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from upfield.imaging.resample import box_centre
from upfield.imaging.volume import Volume
from upfield.sharding.physics.acquisition import acquire, draw_acquisition
from upfield.sharding.physics.configuration import PhysicsConfig

QUIET = PhysicsConfig(
    log_bias_rms=(0, 0),
    off_resonance_mm=(0, 0),
    motion_rate=0,
    zipper_rate=0,
    snr=(20, 20),
    slice_axis=(0, 0, 1),
    smoothing=(0, 0),
    margin_mm=(0, 0),
    thickness_mm=(4, 5),
)


def a_signal(value=0.0, shape=(48, 60, 50)):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-20, -30, 10)
    return Volume(np.full(shape, value, np.float32), affine)


def drawn(config, seed=0, contrast="T1w"):
    return draw_acquisition(config, contrast, np.random.default_rng(seed))


def test_air_has_the_floor_of_rician_noise():
    low = acquire(a_signal(), drawn(QUIET), np.random.default_rng(1)).voxels
    std = 1 / 20
    assert low.mean() == pytest.approx(std * math.sqrt(math.pi / 2), rel=0.05)
    assert low.std() == pytest.approx(std * math.sqrt(2 - math.pi / 2), rel=0.08)
    assert low.min() > 0


def test_tissue_has_the_stated_signal_to_noise_ratio():
    low = acquire(a_signal(1.0), drawn(QUIET), np.random.default_rng(1)).voxels[6:-6, 6:-6, 1:-1]
    assert low.mean() == pytest.approx(math.hypot(1, 0.5 / 20), rel=0.01)
    assert low.std() == pytest.approx(1 / 20, rel=0.08)


def test_the_same_generator_makes_the_same_scan_and_another_does_not():
    signal = a_signal(1.0)
    config = PhysicsConfig(motion_rate=1, zipper_rate=1)
    first, again, other = (acquire(signal, drawn(config), np.random.default_rng(seed)).voxels for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert drawn(config) == drawn(config) != drawn(config, 1)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_the_acquired_grid_is_anisotropic_along_any_axis_and_shares_the_centre(slice_axis):
    signal = a_signal(1.0)
    acquisition = drawn(replace(QUIET, slice_axis=tuple(np.eye(3)[slice_axis])))
    low = acquire(signal, acquisition, np.random.default_rng(0))
    assert int(np.argmax(low.spacing_mm)) == slice_axis == acquisition.slice_axis
    centres = [
        volume.affine[:3, :3] @ box_centre(volume.voxels.shape) + volume.affine[:3, 3] for volume in (signal, low)
    ]
    assert centres[0] == pytest.approx(centres[1])
    assert low.spacing_mm * low.voxels.shape == pytest.approx(signal.spacing_mm * signal.voxels.shape, abs=4)
    assert {acquisition.slice_axis, acquisition.readout_axis, acquisition.phase_axis} == {0, 1, 2}


def test_a_point_stays_where_it_is():
    signal = a_signal()
    signal.voxels[30:33, 20:23, 21:26] = 1
    low = acquire(signal, replace(drawn(QUIET), snr=1e6), np.random.default_rng(0))
    weights = low.voxels / low.voxels.sum()
    index = [
        float((weights.sum(axis=tuple({0, 1, 2} - {axis})) * np.arange(weights.shape[axis])).sum()) for axis in range(3)
    ]
    world = low.affine[:3, :3] @ np.array(index) + low.affine[:3, 3]
    assert world == pytest.approx(signal.affine[:3, 3] + (31, 21, 23), abs=1.5)


def test_a_given_grid_is_kept():
    acquisition = draw_acquisition(QUIET, "T2w", np.random.default_rng(0), (1.6, 1.6, 5.0))
    low = acquire(a_signal(1.0), acquisition, np.random.default_rng(0), (28, 36, 9))
    assert low.voxels.shape == (28, 36, 9)
    assert low.spacing_mm == pytest.approx((1.6, 1.6, 5.0))
    assert acquisition.slice_axis == 2
    assert acquisition.thickness_mm <= 5.0


def test_everything_that_is_drawn_is_within_its_range_and_recorded():
    config = PhysicsConfig()
    trees = [json.loads(json.dumps(drawn(config, seed).to_tree())) for seed in range(200)]
    for name in (
        "thickness_mm",
        "profile_edge",
        "zero_filling",
        "taper",
        "snr",
        "log_bias_rms",
        "off_resonance_mm",
        "smoothing",
    ):
        least, most = getattr(config, name)
        assert all(least <= tree[name] <= most for tree in trees)
    assert {tree["slice_axis"] for tree in trees} == {0, 1, 2}
    assert 0 < sum(tree["motion_mm"] > 0 for tree in trees) < 30
    assert 0 < sum(tree["zipper_strength"] > 0 for tree in trees) < 20
    assert trees[0]["sequence"]["ti_ms"] > 0
    assert trees[0]["relaxations"]["white"]["t1_ms"] > 0


def test_bias_is_smooth_and_as_strong_as_drawn():
    acquisition = replace(drawn(QUIET), snr=1e6, log_bias_rms=0.2)
    low = acquire(a_signal(1.0, (90, 100, 80)), acquisition, np.random.default_rng(0)).voxels[6:-6, 6:-6, 1:-1]
    assert np.log(low).std() == pytest.approx(0.2, rel=0.35)
    assert np.abs(np.diff(low, axis=0)).max() < 0.03
