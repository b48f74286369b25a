"""The HTML report of a sweep: table, learning curves and, if there are enough points, what the parameters explain."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upfield.common import html_page
from upfield.common.tables import counted
from upfield.model.baseline import gain_in_words
from upfield.tune.figures import coordinates_png, learning_curves_png
from upfield.tune.outcomes import PointOutcome, baselines, table_of_points

NUM_BINS = 4
# With 20 points, a parameter without any effect explains 16% of the variance on average; with 10 points, 33%.
LEAST_POINTS = 20
IMPORTANCE = (
    "The share of the variance of validation PSNR between points that the values of one parameter alone explain (eta "
    f"squared). The values of a range are divided into {NUM_BINS} bins with equal numbers of points. The last column "
    "is the mean share of a parameter without any effect. The shares do not show effects that several parameters have "
    "only together."
)
TOO_FEW = (
    "{points}. So few points show no trend: this report does not say which parameter matters, and draws no curve "
    f"through them. It does so if at least {LEAST_POINTS} points have a result."
)
ONE_SEED = "Each point was trained with one seed, so a small difference between two points may be chance."


def write_sweep_report(path: Path, outcomes: Sequence[PointOutcome]) -> None:
    """Write the report as one self-contained HTML file.

    Args:
        path: the HTML file.
        outcomes: the points, best first.

    Raises:
        InputError: matplotlib is not installed.
    """
    scored = [outcome for outcome in outcomes if math.isfinite(outcome.mean)]
    sections = [*_overview(outcomes, scored), *_curves(outcomes)]
    if len(scored) >= LEAST_POINTS:
        sections += _parameters([outcome.point for outcome in scored], [outcome.mean for outcome in scored])
    files = {name: name for name in ("results.csv", "trials.csv", "sweep.yaml")}
    html_page.write_report(path, "Sweep", [*sections, html_page.link_list(files, "Files")])


def _overview(outcomes: Sequence[PointOutcome], scored: Sequence[PointOutcome]) -> list[html_page.Section]:
    texts = [f"{counted(len(scored), 'point')} with a result"]
    if missing := len(outcomes) - len(scored):
        texts[0] += f", {missing} without"
    if len(scored) < LEAST_POINTS:
        texts = [TOO_FEW.format(points=texts[0])]
    else:
        texts[0] += "."
    if all(len(outcome.trials) == 1 for outcome in outcomes):
        texts.append(ONE_SEED)
    return [
        html_page.lead(_result(outcomes, scored), " ".join(texts)),
        html_page.table(*table_of_points(outcomes), "Points"),
        html_page.paragraph(
            "A point's score is the best validation PSNR of its run, averaged over seeds. Its gain is the difference "
            "from cubic interpolation of the same slices. Validation subjects chose the best point, so its score is "
            "too high. Measure it on the test split with upfield evaluate."
        ),
    ]


def _result(outcomes: Sequence[PointOutcome], scored: Sequence[PointOutcome]) -> str:
    if not scored:
        return "No point has a result for all of its seeds."
    best = scored[0]
    of_all = f"The best of {counted(len(outcomes), 'point')} reaches {best.mean:z.2f} dB"
    return f"{of_all}." if best.gain is None else f"{of_all}, {gain_in_words(best.gain)}."


def _curves(outcomes: Sequence[PointOutcome]) -> list[html_page.Section]:
    curves = [(trial.curve, rank) for rank, outcome in enumerate(outcomes) for trial in outcome.trials if trial.curve]
    # A single validation per trial is in the table already.
    if all(len(curve) < 2 for curve, _ in curves):
        return []
    return [
        html_page.figure(
            learning_curves_png(curves, baselines(outcomes)),
            "Validation PSNR over epochs, one line per trial, and the PSNR of cubic interpolation",
            "One line per trial. A line that ends early belongs to a trial that was stopped or failed.",
            "Learning curves",
        )
    ]


def _parameters(points: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> list[html_page.Section]:
    rows = [
        [key, f"{share:.2f}", f"{share_by_chance([point[key] for point in points]):.2f}"]
        for key, share in importance(points, scores).items()
    ]
    return [
        html_page.figure(
            coordinates_png(points, scores),
            "Each point as a line through its parameters to its validation PSNR",
            "Colours go from violet for the worst point to yellow for the best.",
            "Parallel coordinates",
        ),
        html_page.paragraph(IMPORTANCE, "Importance of parameters"),
        html_page.table(["parameter", "share of variance", "share without any effect"], rows),
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
    labels = _bins(settings)
    groups = [values[[other == label for other in labels]] for label in dict.fromkeys(labels)]
    return sum(len(group) * float(group.mean() - values.mean()) ** 2 for group in groups) / total


def share_by_chance(settings: list[Any]) -> float:
    """Return the mean share of variance that a parameter without any effect explains: (groups - 1) / (points - 1)."""
    return (len(set(_bins(settings))) - 1) / (len(settings) - 1)


def _bins(settings: list[Any]) -> list[str]:
    """Return the group of each setting: its value, or its bin if there are many different numbers."""
    labels = [str(setting) for setting in settings]
    if len(set(labels)) <= NUM_BINS or not all(isinstance(setting, int | float) for setting in settings):
        return labels
    ranks = np.argsort(np.argsort(np.array(settings, dtype=np.float64), kind="stable"), kind="stable")
    return [str(rank * NUM_BINS // len(settings)) for rank in ranks.tolist()]
