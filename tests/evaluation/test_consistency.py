"""A volume that agrees with its scan passes the consistency check, and a contradiction is found at its frequency."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from upfield.evaluation.consistency import BAND_NAMES, LowFieldSampling, band_shares, check_consistency, fit_line
from upfield.evaluation.stacked_pairs import StackedPair, read_pair
from upfield.imaging.normalisation import normalise_in_place
from upfield.imaging.volume import Volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.pairs.report_recipe import Degradation, degrade
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes

GEOMETRY = GeometryConfig(
    low_shape=(20, 24, 12), low_spacing_mm=(1.6, 1.6, 4.0), high_shape=(32, 40, 48), high_spacing_mm=(1, 1, 1)
)
REAL = LowFieldSampling(FieldResampler(GEOMETRY, np.zeros(3)), None, 1.0)


def draw(seed: int = 0) -> NDArray[np.float32]:
    """Draw a head-like volume `(32, 40, 48)` float32 in [0, 1]: structure of several sizes inside, zero outside."""
    rng = np.random.default_rng(seed)
    places = np.meshgrid(*(np.linspace(-1, 1, size) for size in GEOMETRY.high_shape), indexing="ij")
    radius = np.sqrt(sum(np.square(place) for place in places))
    inside = 0.5 + 0.1 * sum(
        (folds := ndimage.gaussian_filter(rng.standard_normal(radius.shape), width)) / folds.std() for width in (0.7, 2)
    )
    head = np.clip(np.where(radius < 0.8, inside, 0), 0, 1)
    return np.asarray(ndimage.gaussian_filter(head, 0.4), dtype=np.float32)


def grating(cycles_per_voxel: float) -> NDArray[np.float32]:
    """Add a wave of amplitude 0.05 along the first axis to the head-like volume, `(32, 40, 48)`."""
    wave = 0.05 * np.cos(2 * np.pi * cycles_per_voxel * np.arange(GEOMETRY.high_shape[0]))
    return (np.clip(draw(), 0.2, 0.8) + wave[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("centre_mm", [None, np.zeros(3)])
@pytest.mark.parametrize(("sigma_vox", "gamma"), [(None, 1.0), (0.8, 1.4)])
def test_a_volume_is_consistent_with_its_own_sampling(centre_mm, sigma_vox, gamma):
    sampling = LowFieldSampling(FieldResampler(GEOMETRY, centre_mm), sigma_vox, gamma)
    volume = draw()
    found = check_consistency(volume, np.clip(sampling.sample(volume), 0, 1), sampling)
    assert found.nrmse < 1e-3
    assert max(found.bands) < 1e-4
    assert found.residual.shape == volume.shape


def test_averages_over_voxels_are_consistent():
    volume = draw()
    geometry = replace(GEOMETRY, low_shape=(16, 20, 12), low_spacing_mm=(2.0, 2.0, 4.0))
    blocks = volume.reshape(16, 2, 20, 2, 12, 4).mean(axis=(1, 3, 5)).astype(np.float32)
    resampler = FieldResampler(geometry, np.zeros(3))
    scan = resampler.low_to_high(blocks).clip(0, 1)
    sampling = LowFieldSampling(resampler, None, 1.0)
    found = check_consistency(volume, scan, sampling)
    other = check_consistency(draw(1), scan, sampling)
    assert found.nrmse < 0.08
    assert other.nrmse > 2 * found.nrmse


def test_a_change_of_brightness_and_contrast_is_consistent():
    scan = REAL.sample(draw())
    found = check_consistency(np.float32(0.2) + np.float32(0.5) * draw(), scan, REAL)
    assert found.nrmse < 0.01


@pytest.mark.parametrize(("share_of_limit", "band"), [(0.15, 0), (0.4, 1), (0.75, 2)])
def test_structure_added_within_the_scanner_limit_is_detected_at_its_frequency(share_of_limit, band):
    # A voxel of the low-field grid, 1.6 mm wide, holds at most half a cycle.
    cycles = share_of_limit * 0.5 / 1.6
    clean, planted = grating(0) - np.float32(0.05), grating(cycles)
    scan = REAL.sample(clean)
    found = check_consistency(planted, scan, REAL)
    assert found.nrmse > 10 * check_consistency(clean, scan, REAL).nrmse
    # The test compares energies, not shares, because the scan has more energy at low frequencies.
    spectrum = np.square(np.abs(np.fft.fft(found.residual.mean(axis=(1, 2)))))
    assert abs(np.fft.fftfreq(32))[spectrum.argmax()] == pytest.approx(cycles, abs=1 / 32)
    assert found.bands[band] > 0.05 * max(found.bands)
    assert found.bands[band] > 1e-4


def test_each_band_counts_only_its_own_energy():
    limit = 0.5 / 1.6
    rng = np.random.default_rng(0)
    scan = np.clip(0.5 + 0.05 * rng.standard_normal(GEOMETRY.high_shape), 0.01, 0.99).astype(np.float32)
    x = np.arange(32)[:, None, None]
    # Three whole waves in 32 voxels: 0.3 of the limit.
    wave = (0.05 * np.cos(2 * np.pi * 3 / 32 * x) + np.zeros(GEOMETRY.high_shape)).astype(np.float32)
    assert 0.25 < 3 / 32 / limit < 0.5
    shares = band_shares(wave, scan, GEOMETRY)
    assert shares[1] > 0.01
    assert max(shares[0], shares[2], shares[3]) < 1e-6
    # A grid so coarse that all frequencies lie in the last band: its share is the ratio of the total energies.
    coarse = GeometryConfig(
        low_shape=(2, 2, 2), low_spacing_mm=(100, 100, 100), high_shape=GEOMETRY.high_shape, high_spacing_mm=(1, 1, 1)
    )
    whole = np.abs(np.fft.rfftn(scan - scan.mean())) ** 2
    parts = np.abs(np.fft.rfftn(wave)) ** 2
    assert band_shares(wave, scan, coarse)[3] == pytest.approx(parts.sum() / whole.sum(), rel=1e-3)


def test_structure_beyond_the_scanner_limit_leaves_little_trace():
    clean = grating(0) - np.float32(0.05)
    scan = REAL.sample(clean)
    inside, beyond = (check_consistency(grating(cycles), scan, REAL).nrmse for cycles in (0.1, 0.47))
    # Structure beyond the limit is aliased into the band, weakened by the average over a voxel.
    assert beyond < 0.3 * inside


def test_a_synthetic_scan_is_checked_with_its_recorded_parameters(tiny_shards: Path):
    split = ShardSplit(tiny_shards, "train")
    pairs = [pair for pair in group_volumes(split) if pair.first.kind == "synthetic"]
    read = [read_pair(split, pair) for pair in pairs]
    for listed, pair in zip(pairs, read, strict=True):
        record = split.record(listed.samples[0])
        sampling = LowFieldSampling.of(split.manifest, listed.first.cohort, record)
        assert sampling.sigma_vox == record["parameters"]["sigma_vox"]
        assert sampling.gamma == record["parameters"]["gamma"]
        others = [other.high for other in read if not np.array_equal(other.high, pair.high)]
        found = check_consistency(pair.high, pair.cubic, sampling).nrmse
        assert found < min(check_consistency(high, pair.cubic, sampling).nrmse for high in others)


def test_a_high_field_volume_is_consistent_with_its_synthetic_scan():
    volume = draw()
    sampling = replace(REAL, sigma_vox=0.9, gamma=1.6)
    small = REAL.resampler.high_to_low(Volume(volume, np.eye(4))).voxels
    law = Degradation(sigma_vox=0.9, gamma=1.6, noise_std=0.0)
    low = degrade(np.clip(small, 0, 1), law, 0.3, np.random.default_rng(0))
    scan = normalise_in_place(REAL.resampler.low_to_high(low), "scan").astype(np.float32)
    found = check_consistency(volume, scan, sampling).nrmse
    assert found < 0.01
    for other in (replace(sampling, sigma_vox=0.4), replace(sampling, gamma=1.1), REAL):
        assert check_consistency(volume, scan, other).nrmse > 3 * found


def test_real_scans_have_no_recorded_blur(tiny_shards: Path):
    split = ShardSplit(tiny_shards, "test")
    (listed,) = group_volumes(split)
    sampling = LowFieldSampling.of(split.manifest, listed.first.cohort, split.record(listed.samples[0]))
    assert (sampling.sigma_vox, sampling.gamma) == (None, 1.0)


def test_the_sampling_of_a_simulated_scanner_is_the_recorded_one():
    geometry = {"low_shape": [20, 24, 12], "low_spacing_mm": [1.6, 1.6, 4], "high_shape": [32, 40, 48]}
    manifest = Manifest({"config": {"geometry": geometry, "cohorts": [{"name": "a", "fit": None, "high": None}]}})
    record = {"kind": "synthetic", "parameters": {"recipe": "physics", "spacing_mm": [6.4, 2, 1.6]}}
    sampling = LowFieldSampling.of(manifest, "a", record)
    assert sampling.resampler.geometry.low_spacing_mm == (6.4, 2, 1.6)
    assert sampling.resampler.geometry.low_shape == (5, 20, 30)
    assert sampling.sigma_vox is None
    assert check_consistency(draw(), np.clip(sampling.sample(draw()), 0, 1), sampling).nrmse < 1e-3


@pytest.mark.parametrize(
    ("fit", "high", "resized"),
    [
        (None, "{subject}_slice_{slice}.nii.gz", True),
        (None, "{subject}.nii.gz", False),
        ("crop_pad", "{subject}_slice_{slice}.nii.gz", False),
        ("resize", "{subject}.nii.gz", True),
    ],
)
def test_stacks_are_resized_unless_the_cohort_says_otherwise(tiny_shards: Path, fit, high, resized):
    tree = json.loads((tiny_shards / "manifest.json").read_text())
    tree["config"]["cohorts"][0] |= {"name": "real", "fit": fit, "high": high}
    sampling = LowFieldSampling.of(Manifest(tree), "real", {"kind": "real", "parameters": {}})
    assert (sampling.resampler.centre_mm is None) == resized


def test_scan_voxels_are_drawn_as_blocks():
    volume = draw()
    shown = REAL.scan_blocks(REAL.sample(volume))
    assert shown.shape == volume.shape
    assert len(np.unique(shown[16, :, 20])) <= GEOMETRY.low_shape[1]
    assert np.corrcoef(shown.ravel(), REAL.sample(volume).ravel())[0, 1] > 0.95


def test_fit_line_agrees_with_polyfit():
    x = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    y = (0.3 * x + 0.1 + 0.01 * np.random.default_rng(1).standard_normal(x.shape)).astype(np.float32)
    assert fit_line(x, y) == pytest.approx(np.polyfit(x.ravel(), y.ravel(), 1), abs=1e-4)
    assert fit_line(np.zeros_like(x), y) == (0.0, pytest.approx(float(y.mean())))


def test_there_is_one_share_per_band(tiny_shards: Path):
    split = ShardSplit(tiny_shards, "test")
    pair: StackedPair = read_pair(split, group_volumes(split)[0])
    sampling = LowFieldSampling.of(split.manifest, "real", {"kind": "real", "parameters": {}})
    assert len(check_consistency(pair.high, pair.cubic, sampling).bands) == len(BAND_NAMES)
