"""The HTML report of a sweep: table, learning curves, parallel coordinates, and importance of parameters."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upfield.common import html_page
from upfield.tune.figures import coordinates_png, learning_curves_png
from upfield.tune.outcomes import PointOutcome, format_score
from upfield.tune.space import format_value

NUM_BINS = 4
IMPORTANCE = (
    "The share of the variance of validation PSNR between points that the values of one parameter alone explain (eta "
    f"squared). The values of a range are divided into {NUM_BINS} bins with equal numbers of points. With few points, "
    "shares are high by chance. They do not show effects that several parameters have only together."
)


def write_sweep_report(path: Path, outcomes: Sequence[PointOutcome]) -> None:
    """Write the report as one self-contained HTML file.

    Args:
        path: the HTML file.
        outcomes: the points, best first.

    Raises:
        InputError: matplotlib is not installed.
    """
    scored = [outcome for outcome in outcomes if math.isfinite(outcome.mean)]
    sections = [*_overview(outcomes, len(scored)), *_curves(outcomes)]
    if len(scored) > 1:
        sections += _parameters([outcome.point for outcome in scored], [outcome.mean for outcome in scored])
    files = {name: name for name in ("results.csv", "trials.csv", "sweep.yaml")}
    html_page.write_report(path, "Sweep", [*sections, html_page.link_list(files, "Files")])


def _overview(outcomes: Sequence[PointOutcome], num_scored: int) -> list[html_page.Section]:
    keys = list(outcomes[0].point)
    num_trials = sum(len(outcome.trials) for outcome in outcomes)
    rows = [
        [str(rank), *(format_value(outcome.point[key]) for key in keys), format_score(outcome), outcome.status]
        for rank, outcome in enumerate(outcomes, start=1)
    ]
    return [
        html_page.paragraph(
            f"{len(outcomes)} points, {num_trials} trials, {len(outcomes) - num_scored} points without a result. "
            "Points are compared by the best validation PSNR of their runs, averaged over seeds. Because validation "
            "subjects chose the best point, its figure is too optimistic: measure it on the test split with upfield "
            "evaluate."
        ),
        html_page.table(["rank", *keys, "validation PSNR (dB)", "status"], rows, "Points"),
    ]


def _curves(outcomes: Sequence[PointOutcome]) -> list[html_page.Section]:
    curves = [(trial.curve, rank) for rank, outcome in enumerate(outcomes) for trial in outcome.trials if trial.curve]
    if not curves:
        return []
    return [
        html_page.figure(
            learning_curves_png(curves),
            "Validation PSNR over epochs, one line per trial",
            "The best point is in colour. A line that ends early belongs to a trial that was stopped or failed.",
            "Learning curves",
        )
    ]


def _parameters(points: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> list[html_page.Section]:
    shares = importance(points, scores)
    return [
        html_page.figure(
            coordinates_png(points, scores),
            "Each point as a line through its parameters to its validation PSNR",
            "Colours go from violet for the worst point to yellow for the best.",
            "Parallel coordinates",
        ),
        html_page.paragraph(IMPORTANCE, "Importance of parameters"),
        html_page.table(["parameter", "share of variance"], [[key, f"{share:.2f}"] for key, share in shares.items()]),
    ]


def importance(points: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Compute the share of the scores' variance that each parameter explains alone (eta squared).

    Args:
        points: dotted key -> value; all have the same keys.
        scores: one per point, finite.

    Returns:
        Key -> share in 0..1, largest first.
    """
    values = np.array(scores, dtype=np.float64)
    total = float(np.square(values - values.mean()).sum())
    shares = {key: _explained([point[key] for point in points], values, total) for key in points[0]}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _explained(settings: list[Any], values: np.ndarray[Any, Any], total: float) -> float:
    """Compute one parameter's share of the variance of the scores.

    Args:
        settings: the parameter's value in each point; many different numbers are divided into NUM_BINS bins.
        values: `(points,)`, scores in dB.
        total: sum of the squared deviations of `values` from their mean.

    Returns:
        The sum of squares between groups of equal settings, divided by `total`.
    """
    if total == 0:
        return 0.0
    labels = [str(setting) for setting in settings]
    if len(set(labels)) > NUM_BINS and all(isinstance(setting, int | float) for setting in settings):
        ranks = np.argsort(np.argsort(np.array(settings, dtype=np.float64), kind="stable"), kind="stable")
        labels = [str(rank * NUM_BINS // len(settings)) for rank in ranks.tolist()]
    groups = [values[[other == label for other in labels]] for label in dict.fromkeys(labels)]
    return sum(len(group) * float(group.mean() - values.mean()) ** 2 for group in groups) / total
