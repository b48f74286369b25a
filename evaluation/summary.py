"""From the figures of all volumes to metrics.json, slices.csv and volumes.csv, and the table that ends the command."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.tables import text_table
from upfield.evaluation import comparison
from upfield.evaluation.consistency import BAND_NAMES
from upfield.evaluation.measure import AGAINST, CUBIC, MODEL, VolumeFigures
from upfield.evaluation.metrics import METRICS, SLICE_METRICS, VOLUME_METRICS

NUM_WORST = 10
HELD_OUT = {
    "train": "split train: the model was trained on these subjects, so the figures say nothing about others",
    "val": "split val: the best model was chosen on these subjects, so the figures flatter it",
}
# Of columns of the table that are not of the usual width.
DIFFERENCES = ((MODEL, CUBIC), (MODEL, AGAINST))
TRUST = {
    "inconsistency": (
        "root mean square of the scan minus the volume as the scanner would see it, over that of the scan: the volume "
        "is put through the known low-field sampling (a synthetic scan's recorded blur and darkening; for a real one "
        "the average over its voxels), and a straight line is fitted between the intensities"
    ),
    "inconsistency_bands": (
        "the same energies' ratio (not its root) per band of spatial frequency, in units of what the low-field grid "
        f"can hold: {', '.join(BAND_NAMES)}"
    ),
    "disagreement": (
        "standard deviation of the model's answers to the input, the mirrored input, the input moved by half a voxel "
        "and the input with noise of standard deviation 0.01, each moved back, mean inside the head"
    ),
    "residual, disagreement (per slice)": (
        "in slices.csv and among the worst slices: root mean square of what contradicts the scan, and mean "
        "disagreement, over all pixels of a slice, intensities in [0, 1]"
    ),
}


@dataclass(frozen=True)
class Evaluated:
    """All that an evaluation found."""

    volumes: tuple[VolumeFigures, ...]
    """Sorted as the split's keys."""
    about: dict[str, Any]
    """Restorers, split, data hash, machine, configuration."""

    @property
    def methods(self) -> tuple[str, ...]:
        """What was measured: cubic interpolation, the model, and perhaps another."""
        return tuple(self.volumes[0].slices)

    @property
    def keys(self) -> list[str]:
        """Keys of all slices."""
        return [key for volume in self.volumes for key in volume.keys]

    def values(self, method: str, metric: str) -> NDArray[np.float64]:
        """Give a metric's values over all slices or all volumes, of shape `(slices or volumes,)`."""
        return np.concatenate([comparison.values_of(volume, method, metric) for volume in self.volumes])

    def part(self, wanted: Callable[[VolumeFigures], bool]) -> "Evaluated":
        """Give the same of some volumes."""
        return Evaluated(tuple(volume for volume in self.volumes if wanted(volume)), self.about)


def statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    """Summarise `values` `(N,)`; infinite ones (an image without any error) and undefined ones are only counted."""
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


def metrics_tree(evaluated: Evaluated) -> dict[str, Any]:
    """Give what metrics.json holds."""
    tree: dict[str, Any] = {method: _statistics_of(evaluated, method) for method in evaluated.methods}
    tree["differences"] = _differences_of(evaluated)
    tree["differences_method"] = comparison.METHOD
    tree["groups"] = {
        name: {method: _statistics_of(group, method) for method in group.methods}
        | {"differences": _differences_of(group)}
        for name, group in groups(evaluated).items()
    }
    tree["subjects"] = subject_rows(evaluated)
    tree["trust"] = {method: trust_tree(evaluated, method) for method in evaluated.methods}
    tree["worst_slices"] = worst_slices(evaluated)
    definitions = {name: metric.definition for name, metric in METRICS.items()} | TRUST
    return tree | {"about": evaluated.about, "definitions": definitions}


def _differences_of(evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    return {
        f"{method} - {other}": comparison.differences(evaluated.volumes, method, other)
        for method, other in DIFFERENCES
        if other in evaluated.methods
    }


def _statistics_of(evaluated: Evaluated, method: str) -> dict[str, Any]:
    return {metric: statistics(evaluated.values(method, metric)) for metric in METRICS}


def groups(evaluated: Evaluated) -> dict[str, Evaluated]:
    """Give the parts by cohort and kind, `cohort, kind`, and by kind alone where several cohorts have it."""
    parts = sorted({(volume.cohort, volume.kind) for volume in evaluated.volumes})
    found = {
        f"{cohort}, {kind}": evaluated.part(lambda v, c=cohort, k=kind: (v.cohort, v.kind) == (c, k))
        for cohort, kind in parts
    }
    for kind in sorted({kind for _, kind in parts}):
        if sum(part[1] == kind for part in parts) > 1:
            found[f"all, {kind}"] = evaluated.part(lambda v, k=kind: v.kind == k)
    return found


def subject_rows(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Give a row per subject: its mean under each metric, per method."""
    means = {
        (method, metric): comparison.subject_means(evaluated.volumes, method, metric)
        for method in evaluated.methods
        for metric in METRICS
    }
    subjects = dict.fromkeys((volume.cohort, volume.subject) for volume in evaluated.volumes)
    return [
        {"cohort": cohort, "subject": subject}
        | {
            method: {metric: means[method, metric].get((cohort, subject)) for metric in METRICS}
            for method in evaluated.methods
        }
        for cohort, subject in subjects
    ]


def trust_tree(evaluated: Evaluated, method: str) -> dict[str, Any]:
    """Give a method's consistency and disagreement: over volumes, and per volume."""
    trusts = {volume.name: volume.trust[method] for volume in evaluated.volumes}
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


def worst_slices(evaluated: Evaluated) -> dict[str, list[dict[str, Any]]]:
    """Give the slices where the model contradicts the scan most, and where it agrees with itself least."""
    columns = {
        "inconsistency": [volume.trust[MODEL].slice_residual for volume in evaluated.volumes],
        "disagreement": [
            doubt for volume in evaluated.volumes if (doubt := volume.trust[MODEL].slice_disagreement) is not None
        ],
    }
    keys = evaluated.keys
    found: dict[str, list[dict[str, Any]]] = {}
    for name, parts in columns.items():
        if parts:
            values = np.concatenate(parts)
            order = np.argsort(-values, kind="stable")[:NUM_WORST]
            found[name] = [{"key": keys[i], "value": float(values[i])} for i in order]
    return found


def slices_csv(evaluated: Evaluated) -> str:
    """Give one line per slice: its key, cohort, subject and kind, each metric of each method, and what is doubtful."""
    methods = evaluated.methods
    trust = [(method, name) for method in methods for name in ("slice_residual", "slice_disagreement")]
    header = ["key", "cohort", "subject", "kind", *(f"{m}_{name}" for m in methods for name in SLICE_METRICS)]
    rows: list[list[object]] = [[*header, *(f"{method}_{name.removeprefix('slice_')}" for method, name in trust)]]
    for volume in evaluated.volumes:
        columns = [volume.slices[method][name] for method in methods for name in SLICE_METRICS]
        columns += [_or_nothing(getattr(volume.trust[method], name), len(volume.keys)) for method, name in trust]
        for row, key in enumerate(volume.keys):
            numbers = [_short(column[row]) for column in columns]
            rows.append([key, volume.cohort, volume.subject, volume.kind, *numbers])
    return _csv(rows)


def _or_nothing(values: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.full(count, np.nan) if values is None else values


def volumes_csv(evaluated: Evaluated) -> str:
    """Give one line per volume: its name, cohort, subject and kind, each volume metric of each method, and doubts."""
    methods = evaluated.methods
    header = ["volume", "cohort", "subject", "kind", *(f"{m}_{name}" for m in methods for name in VOLUME_METRICS)]
    header += [f"{method}_{name}" for method in methods for name in ("inconsistency", "disagreement")]
    rows: list[list[object]] = [[*header]]
    for volume in evaluated.volumes:
        numbers: list[float | None] = [volume.values[method][name] for method in methods for name in VOLUME_METRICS]
        for method in methods:
            numbers += [volume.trust[method].inconsistency, volume.trust[method].disagreement]
        rows.append([volume.name, volume.cohort, volume.subject, volume.kind, *map(_short, numbers)])
    return _csv(rows)


def _short(number: float | None) -> str:
    """Spell a number; nothing for what is not defined."""
    return "" if number is None or np.isnan(number) else f"{number:.6g}"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def table(tree: dict[str, Any]) -> str:
    """Give the table that ends the command: each method's mean under each metric, and the model's difference.

    Args:
        tree: what metrics.json holds.
    """
    methods = [method for method in (CUBIC, MODEL, AGAINST) if method in tree]
    about = tree["about"]
    has_interval = about["subjects"] > 1
    others = [other for other in (CUBIC, AGAINST) if other in methods]
    header = ["", *(f"{method} mean" for method in methods)]
    for other in others:
        header += [f"{MODEL} - {other}", *([f"{comparison.CONFIDENCE:.0%} interval", "p"] if has_interval else [])]
    rows: list[list[str]] = []
    for name, metric in METRICS.items():
        means = [tree[method][name]["mean"] for method in methods]
        if means == [None] * len(means):
            continue
        row = [name if metric.higher_is_better else f"{name} (lower)"]
        row += ["-" if mean is None else f"{mean:.{metric.digits}f}" for mean in means]
        for other in others:
            cells = _difference_cells(tree["differences"][f"{MODEL} - {other}"].get(name), metric.digits)
            row += cells if has_interval else cells[:1]
        rows.append(row)
    lines = [f"{counted(about)}: {about['restorer']}"]
    lines += [f"against: {about['against']}"] if AGAINST in methods else []
    lines.append(text_table(header, rows, numeric=True))
    return "\n".join([*lines, *notes(tree)])


def counted(about: dict[str, Any]) -> str:
    """Say how much was measured, and how much of it is real."""
    subjects = "1 subject" if about["subjects"] == 1 else f"{about['subjects']} subjects"
    volumes = " and ".join(f"{count} {kind}" for kind, count in about["volumes"].items())
    plural = "s" if sum(about["volumes"].values()) > 1 else ""
    return f"{about['slices']} slices of {volumes} volume{plural}, {subjects}, split {about['split']}"


def _difference_cells(difference: dict[str, Any] | None, digits: int) -> list[str]:
    """Return the cells of a difference, its interval and its p."""
    if difference is None:
        return ["-", "", ""]
    mean = f"{difference['mean']:+.{digits}f}"
    if difference["low"] is None:
        return [mean, "", ""]
    interval = f"{difference['low']:+.{digits}f} .. {difference['high']:+.{digits}f}"
    return [mean, interval, f"{difference['p']:.3f}"]


def notes(tree: dict[str, Any]) -> list[str]:
    """Say what a reader of the figures must know: of whom they are, what was left out, how few subjects there are."""
    return [*_notes_on_subjects(tree["about"]), *_notes_on_values(tree), *_notes_on_tests(tree["about"]["subjects"])]


def _notes_on_subjects(about: dict[str, Any]) -> list[str]:
    found = [HELD_OUT[about["split"]]] if about["split"] in HELD_OUT else []
    if len(about["volumes"]) > 1:
        found.append("real and synthetic volumes are in one mean here; they stand apart in groups")
    for name, origin in about["models"].items():
        if (theirs := origin["trained_on_sha256"]) != (ours := about["data_sha256"]):
            found.append(
                f"{name}: trained on shards of data hash {theirs[:12]}, not on those of this set ({ours[:12]}), so "
                "whether it has seen these subjects is not known here"
            )
    return found


def _notes_on_values(tree: dict[str, Any]) -> list[str]:
    found = ["means are over slices or volumes, differences over subjects, which weigh the same"]
    for method in (CUBIC, MODEL, AGAINST):
        for name, metric in METRICS.items():
            one = tree.get(method, {}).get(name, {})
            if one.get("infinite"):
                found.append(f"{method}, {name}: {one['infinite']} {metric.level}s without any error are left out")
            # Slices with little of the head in them are left out by definition.
            if one.get("undefined") and one["count"] and metric.level == "volume":
                found.append(f"{method}, {name}: not defined for {one['undefined']} volumes, which are left out")
    undefined = [name for name in METRICS if tree[MODEL][name]["mean"] is None]
    if undefined:
        found.append(f"not defined for images of this size or content: {', '.join(undefined)}")
    return found


def _notes_on_tests(subjects: int) -> list[str]:
    if subjects < 2:
        return ["a single subject: no interval and no test can be given; slices of one subject do not count as many"]
    if subjects < 6:
        return [f"{subjects} subjects: no paired test over so few can give a p below {2 / 2**subjects:.3g}"]
    return []
