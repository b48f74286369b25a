"""CSV files of an evaluation: one line per slice, per volume, or per compared model."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.evaluation.metrics import METRICS, SLICE_METRICS, VOLUME_METRICS
from upfield.evaluation.summary import EvaluationResult


def slices_csv(result: EvaluationResult) -> str:
    """Return slices.csv, one line per slice.

    The columns are key, cohort, subject, kind, each slice metric of each method, and for each method the residual and
    the disagreement.
    """
    methods = result.methods
    trust = [(method, name) for method in methods for name in ("slice_residual", "slice_disagreement")]
    header = ["key", "cohort", "subject", "kind", *(f"{m}_{name}" for m in methods for name in SLICE_METRICS)]
    rows: list[list[object]] = [[*header, *(f"{method}_{name.removeprefix('slice_')}" for method, name in trust)]]
    for volume in result.volumes:
        columns = [volume.slices[method][name] for method in methods for name in SLICE_METRICS]
        columns += [_or_undefined(getattr(volume.trust[method], name), len(volume.keys)) for method, name in trust]
        for row, key in enumerate(volume.keys):
            numbers = [_short(column[row]) for column in columns]
            rows.append([key, volume.cohort, volume.subject, volume.kind, *numbers])
    return _csv(rows)


def volumes_csv(result: EvaluationResult) -> str:
    """Return volumes.csv, one line per volume.

    The columns are volume, cohort, subject, kind, each volume metric of each method, and for each method the
    inconsistency and the disagreement.
    """
    methods = result.methods
    header = ["volume", "cohort", "subject", "kind", *(f"{m}_{name}" for m in methods for name in VOLUME_METRICS)]
    header += [f"{method}_{name}" for method in methods for name in ("inconsistency", "disagreement")]
    rows: list[list[object]] = [[*header]]
    for volume in result.volumes:
        numbers: list[float | None] = [volume.values[method][name] for method in methods for name in VOLUME_METRICS]
        for method in methods:
            numbers += [volume.trust[method].inconsistency, volume.trust[method].disagreement]
        rows.append([volume.name, volume.cohort, volume.subject, volume.kind, *map(_short, numbers)])
    return _csv(rows)


def means_csv(tree: dict[str, Any]) -> str:
    """Return compare.csv, one line per method with the mean of each metric.

    Args:
        tree: the contents of compare.json.
    """
    rows = [[method, *(means[metric]["mean"] for metric in METRICS)] for method, means in tree["methods"].items()]
    return _csv([["model", *METRICS], *rows])


def _or_undefined(values: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.full(count, np.nan) if values is None else values


def _short(number: float | None) -> str:
    """Format a number with six significant digits; an undefined number becomes an empty cell."""
    return "" if number is None or np.isnan(number) else f"{number:z.6g}"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
