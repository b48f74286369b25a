"""Differences over subjects, intervals and p-values agree with cases that can be enumerated."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from upfield.evaluation.measurements import VolumeMeasurements
from upfield.evaluation.metrics import SLICE_METRICS, VOLUME_METRICS
from upfield.evaluation.paired_differences import RESAMPLES, compare, difference_of, subject_means


def volume(subject: str, cubic: list[float], model: list[float], kind: str = "real") -> VolumeMeasurements:
    """Make measurements in which every slice metric has the same values, and every volume metric their mean."""
    slices = {
        method: dict.fromkeys(SLICE_METRICS, np.array(values))
        for method, values in (("cubic", cubic), ("model", model))
    }
    values = {method: dict.fromkeys(VOLUME_METRICS, float(np.mean(v["mae_slice"]))) for method, v in slices.items()}
    keys = tuple(f"c-{subject}-{kind}-0-x{x:03d}" for x in range(len(cubic)))
    return VolumeMeasurements("c", subject, kind, f"c-{subject}-{kind}-0", keys, slices, values, {})


def sign_flips(differences: list[float]) -> float:
    """Compute the two-sided p: twice the smaller tail of the sums under all sign flips."""
    sums = np.array([np.dot(signs, differences) for signs in product((1, -1), repeat=len(differences))])
    observed, slack = sum(differences), 1e-9
    return min(1.0, 2 * min((sums >= observed - slack).mean(), (sums <= observed + slack).mean()))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0], 0.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2 / 64),
        ([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4 / 64),
        ([3.0, -3.0], 1.0),
    ],
)
def test_p_agrees_with_all_sign_flips(differences, p):
    assert sign_flips(differences) == pytest.approx(p)
    assert difference_of(np.array(differences)).p == pytest.approx(p)


def test_sign_flips_are_sampled_if_there_are_too_many():
    differences = np.random.default_rng(0).normal(0.4, 1, 20)
    assert RESAMPLES < 2**20
    found = difference_of(differences)
    assert found.p == difference_of(differences).p
    # The sums under random sign flips are nearly normally distributed.
    z = differences.sum() / np.linalg.norm(differences)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.02)


def test_the_interval_agrees_with_all_bootstrap_samples():
    differences = [0.0, 1.0, 5.0, 2.0]
    means = np.array([np.mean(chosen) for chosen in product(differences, repeat=4)])
    found = difference_of(np.array(differences))
    assert (found.mean, found.subjects) == (2.0, 4)
    # A percentile of 9999 random samples is the same mean as the percentile of all 256 samples, or a neighbouring one.
    assert found.low == pytest.approx(np.percentile(means, 2.5), abs=0.26)
    assert found.high == pytest.approx(np.percentile(means, 97.5), abs=0.26)


def test_equal_differences_have_an_interval_of_zero_width():
    found = difference_of(np.full(5, 0.25))
    assert (found.mean, found.low, found.high, found.p) == (0.25, 0.25, 0.25, pytest.approx(2 / 32))


def test_a_single_subject_has_neither_interval_nor_test():
    found = difference_of(np.array([1.5]))
    assert (found.mean, found.low, found.high, found.p, found.subjects) == (1.5, None, None, None, 1)


def test_every_subject_has_the_same_weight():
    volumes = [
        volume("a", [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]),
        volume("a", [1.0], [6.0], kind="synthetic"),
        volume("b", [1.0, 3.0], [1.0, 3.0]),
    ]
    assert subject_means(volumes, "model", "psnr_slice") == {("c", "a"): 3.0, ("c", "b"): 2.0}
    found = compare(volumes, "model", "cubic", "psnr_slice")
    assert found is not None
    assert (found.mean, found.subjects) == (pytest.approx(np.mean([2.0, 0.0])), 2)
    of_volumes = compare(volumes, "model", "cubic", "nrmse")
    assert of_volumes is not None
    assert of_volumes.mean == pytest.approx(np.mean([(1 + 5) / 2, 0.0]))


def test_only_values_that_are_finite_for_both_methods_are_compared():
    volumes = [volume("a", [1.0, 2.0, np.nan], [np.inf, 5.0, 9.0]), volume("b", [np.inf, np.inf], [1.0, 2.0])]
    found = compare(volumes, "model", "cubic", "psnr_slice")
    assert found is not None
    assert (found.mean, found.subjects) == (3.0, 1)
    assert compare(volumes[1:], "model", "cubic", "psnr_slice") is None
