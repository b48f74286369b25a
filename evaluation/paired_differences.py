"""Differences between two methods over subjects, because slices of one subject are not independent observations."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from upfield.evaluation.measurements import VolumeMeasurements
from upfield.evaluation.metrics import METRICS

CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
METHOD = (
    "A difference is the mean over subjects of each subject's mean difference, over slices or volumes for which both "
    f"methods have a finite value. Its {CONFIDENCE:.0%} interval is from {RESAMPLES} bootstrap samples of subjects. "
    "p is that of a two-sided sign-flip permutation test over subjects. Slices of one subject are not independent, so "
    "they are not counted as separate observations."
)


@dataclass(frozen=True)
class Difference:
    """The difference between two methods in one metric."""

    mean: float
    """Mean over subjects, in the metric's unit."""
    low: float | None
    """Lower end of the confidence interval; None for a single subject."""
    high: float | None
    """Upper end of the confidence interval; None for a single subject."""
    p: float | None
    """Two-sided p-value of a sign-flip permutation test; None for a single subject."""
    subjects: int
    """Number of subjects for which both methods have a finite value."""

    def to_tree(self) -> dict[str, Any]:
        """Return the fields as a dictionary, as metrics.json holds them."""
        return asdict(self)


def subject_means(volumes: Sequence[VolumeMeasurements], method: str, metric: str) -> dict[tuple[str, str], float]:
    """Compute the mean of each (cohort, subject) over finite values; subjects without a finite value are left out."""
    collected: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    for volume in volumes:
        collected[volume.cohort, volume.subject].append(values_of(volume, method, metric))
    means: dict[tuple[str, str], float] = {}
    for subject, parts in collected.items():
        values = np.concatenate(parts)
        if len(finite := values[np.isfinite(values)]):
            means[subject] = float(finite.mean())
    return means


def values_of(volume: VolumeMeasurements, method: str, metric: str) -> NDArray[np.float64]:
    """Return a metric's values in one volume: `(X,)` or, for a volume metric, `(1,)`."""
    if METRICS[metric].level == "slice":
        return volume.slices[method][metric]
    return np.array([volume.values[method][metric]])


def compare(volumes: Sequence[VolumeMeasurements], method: str, other: str, metric: str) -> Difference | None:
    """Compute the difference `method` minus `other`, over values that are finite for both.

    Returns:
        The difference, or None if no value is finite for both.
    """
    collected: dict[tuple[str, str], list[NDArray[np.float64]]] = defaultdict(list)
    for volume in volumes:
        first, second = (values_of(volume, name, metric) for name in (method, other))
        both = np.isfinite(first) & np.isfinite(second)
        collected[volume.cohort, volume.subject].append(first[both] - second[both])
    by_subject = [np.concatenate(parts) for parts in collected.values()]
    means = [float(values.mean()) for values in by_subject if len(values)]
    return difference_of(np.array(means)) if means else None


def difference_of(differences: NDArray[np.float64]) -> Difference:
    """Summarise differences `(subjects,)` of at least one subject.

    The interval comes from a percentile bootstrap, and p from a sign-flip permutation test (both in scipy.stats).
    """
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return Difference(mean, None, None, None, count)
    if np.ptp(differences) == 0:
        low = high = mean
    else:
        interval = stats.bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(SEED),
    )
    return Difference(mean, low, high, float(test.pvalue), count)


def differences(volumes: Sequence[VolumeMeasurements], method: str, other: str) -> dict[str, dict[str, Any]]:
    """Compute `method` minus `other` in each metric; metrics without a finite value for both are left out."""
    compared = {metric: compare(volumes, method, other, metric) for metric in METRICS}
    return {metric: difference.to_tree() for metric, difference in compared.items() if difference}
