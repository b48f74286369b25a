"""Summarise the measurements of all volumes, for metrics.json and, if there are several models, for compare.json."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.evaluation.consistency import BAND_NAMES
from upfield.evaluation.measurements import AGAINST, CUBIC, MODEL, VolumeMeasurements
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.paired_differences import METHOD, differences, subject_means, values_of

NUM_WORST = 10
DIFFERENCES = ((MODEL, CUBIC), (MODEL, AGAINST))
UNCORRECTED = "p is not corrected for the number of tests, so some differences seem significant by chance alone."
TRUST = {
    "inconsistency": (
        "root mean square of the difference between the scan and the volume as the scanner would see it, divided by "
        "that of the scan. The scanner is simulated by the recorded blur and darkening of a synthetic scan, or by the "
        "average over the voxels of a real one, and by a straight line fitted to the intensities"
    ),
    "inconsistency_bands": (
        "the same ratio of energies, without the root, in each band of spatial frequency, relative to the limit of the "
        f"low-field grid: {', '.join(BAND_NAMES)}"
    ),
    "disagreement": (
        "standard deviation between the model's outputs for four inputs: the scan, its mirror image, the scan moved by "
        "half a voxel, and the scan with noise of standard deviation 0.01. Each output is moved back first, and the "
        "mean is over the head"
    ),
    "residual, disagreement (per slice)": (
        "in slices.csv and in the list of slices with the largest values: root mean square of the difference from the "
        "scan, and mean disagreement, over all pixels of a slice, for intensities in [0, 1]"
    ),
}


@dataclass(frozen=True)
class EvaluationResult:
    """The measurements of an evaluation, and their provenance."""

    volumes: tuple[VolumeMeasurements, ...]
    """Measurements of each volume, in the order of the sample keys."""
    about: dict[str, Any]
    """Models, split, data hash, machine and configuration, as metrics.json holds them."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, with cubic interpolation first."""
        return tuple(self.volumes[0].slices)

    @property
    def keys(self) -> list[str]:
        """Keys of all slices."""
        return [key for volume in self.volumes for key in volume.keys]

    def values(self, method: str, metric: str) -> NDArray[np.float64]:
        """Return a metric's values over all slices or all volumes, of shape `(slices or volumes,)`."""
        return np.concatenate([values_of(volume, method, metric) for volume in self.volumes])

    def part(self, wanted: Callable[[VolumeMeasurements], bool]) -> "EvaluationResult":
        """Return the result for the volumes that `wanted` accepts."""
        return EvaluationResult(tuple(volume for volume in self.volumes if wanted(volume)), self.about)


def statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    """Summarise `values` `(N,)`. Infinite values (images without any error) and undefined values are only counted."""
    finite = values[np.isfinite(values)]
    counts = {
        "count": len(finite),
        "infinite": int(np.isinf(values).sum()),
        "undefined": int(np.isnan(values).sum()),
    }
    if not len(finite):
        return dict.fromkeys(("mean", "median", "std", "min", "max")) | counts
    return {
        "mean": float(finite.mean()),
        "median": float(np.median(finite)),
        "std": float(finite.std()),
        "min": float(finite.min()),
        "max": float(finite.max()),
    } | counts


def metrics_tree(result: EvaluationResult) -> dict[str, Any]:
    """Compute the contents of metrics.json."""
    tree: dict[str, Any] = {method: _statistics_of(result, method) for method in result.methods}
    tree["differences"] = _differences_of(result)
    tree["differences_method"] = METHOD
    tree["groups"] = {
        name: {method: _statistics_of(group, method) for method in group.methods}
        | {"differences": _differences_of(group)}
        for name, group in groups(result).items()
    }
    tree["subjects"] = subject_rows(result)
    tree["trust"] = {method: trust_tree(result, method) for method in result.methods}
    tree["worst_slices"] = worst_slices(result)
    definitions = {name: metric.definition for name, metric in METRICS.items()} | TRUST
    return tree | {"about": result.about, "definitions": definitions}


def comparison_tree(result: EvaluationResult, models: Sequence[str]) -> dict[str, Any]:
    """Compute the contents of compare.json: statistics of each method, and differences between methods.

    Args:
        result: measurements for all methods.
        models: the evaluated models. Every method is compared with cubic interpolation and with the first of these
            models.
    """
    others = [method for method in result.methods if method not in (CUBIC, models[0])]
    pairs = [(method, CUBIC) for method in result.methods if method != CUBIC]
    pairs += [(method, models[0]) for method in others]
    kept = ("split", "data_sha256", "slices", "subjects", "volumes", "failed_volumes", "machine", "configuration")
    return {
        "methods": {method: _statistics_of(result, method) for method in result.methods},
        "differences": [
            {"method": method, "other": other, "metrics": differences(result.volumes, method, other)}
            for method, other in pairs
        ],
        "differences_method": f"{METHOD} {UNCORRECTED}",
        "definitions": {name: metric.definition for name, metric in METRICS.items()},
        "about": {name: result.about[name] for name in kept},
    }


def _differences_of(result: EvaluationResult) -> dict[str, dict[str, Any]]:
    return {
        f"{method} - {other}": differences(result.volumes, method, other)
        for method, other in DIFFERENCES
        if other in result.methods
    }


def _statistics_of(result: EvaluationResult, method: str) -> dict[str, Any]:
    return {metric: statistics(result.values(method, metric)) for metric in METRICS}


def groups(result: EvaluationResult) -> dict[str, EvaluationResult]:
    """Split a result into groups `cohort, kind`. Volumes of one kind from several cohorts also form `all, kind`."""
    parts = sorted({(volume.cohort, volume.kind) for volume in result.volumes})
    named = {
        f"{cohort}, {kind}": result.part(lambda v, c=cohort, k=kind: (v.cohort, v.kind) == (c, k))
        for cohort, kind in parts
    }
    for kind in sorted({kind for _, kind in parts}):
        if sum(part[1] == kind for part in parts) > 1:
            named[f"all, {kind}"] = result.part(lambda v, k=kind: v.kind == k)
    return named


def subject_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """Compute one row per subject: the mean of each metric, for each method."""
    means = {
        (method, metric): subject_means(result.volumes, method, metric)
        for method in result.methods
        for metric in METRICS
    }
    subjects = dict.fromkeys((volume.cohort, volume.subject) for volume in result.volumes)
    return [
        {"cohort": cohort, "subject": subject}
        | {
            method: {metric: means[method, metric].get((cohort, subject)) for metric in METRICS}
            for method in result.methods
        }
        for cohort, subject in subjects
    ]


def trust_tree(result: EvaluationResult, method: str) -> dict[str, Any]:
    """Compute a method's inconsistency and disagreement, over all volumes and per volume."""
    trusts = {volume.name: volume.trust[method] for volume in result.volumes}
    bands = np.array([trust.bands for trust in trusts.values()])
    doubts = [trust.disagreement for trust in trusts.values() if trust.disagreement is not None]
    return {
        "inconsistency": statistics(np.array([trust.inconsistency for trust in trusts.values()])),
        "inconsistency_bands": dict(zip(BAND_NAMES, bands.mean(axis=0).tolist(), strict=True)),
        "disagreement": statistics(np.array(doubts)) if doubts else None,
        "volumes": {
            name: {
                "inconsistency": trust.inconsistency,
                "inconsistency_bands": list(trust.bands),
                "disagreement": trust.disagreement,
            }
            for name, trust in trusts.items()
        },
    }


def worst_slices(result: EvaluationResult) -> dict[str, list[dict[str, Any]]]:
    """Find the slices in which the model contradicts the scan most, or disagrees with itself most."""
    columns = {
        "inconsistency": [volume.trust[MODEL].slice_residual for volume in result.volumes],
        "disagreement": [
            doubt for volume in result.volumes if (doubt := volume.trust[MODEL].slice_disagreement) is not None
        ],
    }
    keys = result.keys
    worst: dict[str, list[dict[str, Any]]] = {}
    for name, parts in columns.items():
        if parts:
            values = np.concatenate(parts)
            order = np.argsort(-values, kind="stable")[:NUM_WORST]
            worst[name] = [{"key": keys[i], "value": float(values[i])} for i in order]
    return worst
