"""The physics recipe for volumes that a high-field scanner measured."""

import numpy as np
import pytest
from scipy import ndimage

from upfield.common.errors import InputError
from upfield.imaging.volume import Volume
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.recipe import simulate
from upfield.sharding.physics.relaxation import LOW, Tissue
from upfield.sharding.physics.sequences import Sequence, tissue_signals
from upfield.sharding.physics.tissue_mixture import PRIORS, find_tissues, fit_mixture, low_field_signal

MEANS = {tissue: row.mean for tissue, row in LOW.items()}
T1W = tissue_signals(Sequence("inversion_recovery", "T1w", 1000, 5, 380), MEANS)


def a_head(skull=True, spacing_mm=3.0):
    """Return concentric shells: white, grey and fluid in a skull with scalp, or without both."""
    places = np.meshgrid(*(np.arange(count) - (count - 1) / 2 for count in (60, 66, 62)), indexing="ij")
    radius_mm = spacing_mm * np.sqrt(sum(place**2 for place in places))
    voxels = np.zeros(radius_mm.shape, np.float32)
    shells = [(76, 0.4), (72, 0.95)] if skull else []
    for edge_mm, level in [*shells, *([(66, 0.03)] if skull else []), (60, 0.2), (58, 0.6), (44, 0.85), (22, 0.2)]:
        voxels[radius_mm < edge_mm] = level
    voxels = np.asarray(ndimage.gaussian_filter(voxels, 0.5), np.float32)
    if skull:
        voxels += np.abs(0.01 * np.random.default_rng(0).standard_normal(voxels.shape)).astype(np.float32)
    else:
        voxels[radius_mm > 63] = 0
    return Volume(voxels.clip(0, 1), np.diag([spacing_mm] * 3 + [1.0])), radius_mm


@pytest.mark.parametrize("skull", [True, False])
def test_each_tissue_gets_its_signal_at_64_mt(skull):
    head, radius_mm = a_head(skull)
    tissues = find_tissues(head, "T1w")
    signal, levels = low_field_signal(head, tissues, T1W), tissues.levels
    assert levels.stripped is not skull
    assert (levels.fluid, levels.grey, levels.white) == pytest.approx((0.2, 0.6, 0.85), abs=0.06)
    for tissue, (inner, outer) in {"white": (26, 40), "grey": (48, 54), "fluid": (0, 16)}.items():
        shell = signal.voxels[(radius_mm > inner) & (radius_mm < outer)]
        assert np.median(shell) == pytest.approx(T1W[Tissue(tissue)], abs=0.12), tissue
    if skull:
        assert np.median(signal.voxels[(radius_mm > 67) & (radius_mm < 71)]) > 1.5
    assert np.median(signal.voxels[radius_mm > 82]) < 0.05


def test_no_class_border_is_drawn_between_grey_and_white_matter():
    head, _ = a_head(skull=False)
    ramp = np.linspace(0.6, 0.85, 20, dtype=np.float32)
    head.voxels[20:40, 28:38, 38:42] = ramp[:, None, None]
    signal = low_field_signal(head, find_tissues(head, "T1w"), T1W)
    line = signal.voxels[20:40, 33, 40]
    steps = np.diff(line)
    assert (steps >= -1e-4).all()
    assert steps.max() < 5 * steps.mean()


@pytest.mark.parametrize("contrast", ["T1w", "T2w", "FLAIR"])
def test_any_contrast_is_simulated_repeatably_and_recorded(contrast):
    head, _ = a_head()
    runs = [simulate(head, PhysicsConfig(), contrast, np.random.default_rng(4)) for _ in range(2)]
    (low, tree), (again, tree_again) = runs
    assert np.array_equal(low.voxels, again.voxels)
    assert tree == tree_again
    assert tree["sequence"]["contrast"] == contrast
    assert {"fluid", "grey", "white", "muscle", "fat"} <= set(tree["levels"])
    assert np.isfinite(low.voxels).all()


def test_an_unknown_contrast_is_refused():
    head, _ = a_head()
    with pytest.raises(InputError, match="found bold"):
        simulate(head, PhysicsConfig(), "bold", np.random.default_rng(0))


@pytest.mark.parametrize("values", [np.zeros(100), np.full(100, 0.5), np.ones(3), np.linspace(0, 1, 50)])
def test_a_mixture_of_almost_nothing_still_has_three_levels(values):
    means = fit_mixture(values.astype(np.float32), PRIORS["T1w"])
    assert np.isfinite(means).all()
    assert means == sorted(means)
    assert len(set(means)) == 3


def test_the_mixture_finds_three_tissues():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(mean, 0.04, count) for mean, count in ((0.2, 800), (0.6, 4000), (0.85, 5000))])
    assert fit_mixture(values.astype(np.float32), PRIORS["T1w"]) == pytest.approx([0.2, 0.6, 0.85], abs=0.02)
