"""The report of a sweep: the table, learning curves, parallel coordinates, and what mattered."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upfield.common import html_page as report
from upfield.tune.figures import coordinates_png, learning_curves_png
from upfield.tune.outcomes import Tried, spell_score
from upfield.tune.space import spell

NUM_BINS = 4
IMPORTANCE = (
    "Share of the variance of validation PSNR between points that this parameter's values alone explain (eta squared; "
    f"values of a range are put into {NUM_BINS} bins of equally many points). With few points it is high by chance, "
    "and what parameters do only together it does not see."
)


def write_sweep_report(path: Path, tried: Sequence[Tried]) -> None:
    """Write the self-contained report.

    Args:
        path: the HTML file.
        tried: the points, the best first.

    Raises:
        InputError: matplotlib is not installed.
    """
    keys = list(tried[0].point)
    num_trials = sum(len(one.trials) for one in tried)
    rows = [
        [str(number), *(spell(one.point[key]) for key in keys), spell_score(one), one.status]
        for number, one in enumerate(tried, start=1)
    ]
    scored = [one for one in tried if math.isfinite(one.mean)]
    sections = [
        report.paragraph(
            f"{len(tried)} points, {num_trials} trials, {len(tried) - len(scored)} points without a result. Points are "
            "compared by the best validation PSNR of their runs, mean over seeds. Validation subjects chose them, so "
            "the best figure flatters the best point: measure it on the test split with upfield evaluate."
        ),
        report.table(["rank", *keys, "validation PSNR (dB)", "status"], rows, "Points"),
    ]
    if curves := [(trial.curve, number) for number, one in enumerate(tried) for trial in one.trials if trial.curve]:
        sections.append(
            report.figure(
                learning_curves_png(curves),
                "Validation PSNR over epochs, one line per trial",
                "The best point in colour; a line that ends early was stopped, or failed.",
                "Learning curves",
            )
        )
    if len(scored) > 1:
        sections.append(
            report.figure(
                coordinates_png([one.point for one in scored], [one.mean for one in scored]),
                "Each point as a line through its parameters to its validation PSNR",
                "From violet for the worst to yellow for the best.",
                "Parallel coordinates",
            )
        )
        shares = importance([one.point for one in scored], [one.mean for one in scored])
        sections += [
            report.paragraph(IMPORTANCE, "What mattered"),
            report.table(["parameter", "share of variance"], [[key, f"{share:.2f}"] for key, share in shares.items()]),
        ]
    sections.append(report.link_list({name: name for name in ("results.csv", "trials.csv", "sweep.yaml")}, "Files"))
    report.write_report(path, "Sweep", sections)


def importance(points: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Give parameter -> share of the scores' variance that it explains alone, the largest first.

    Args:
        points: of one set of keys.
        scores: one per point, finite.
    """
    values = np.array(scores, dtype=np.float64)
    total = float(np.square(values - values.mean()).sum())
    shares = {key: _explained([point[key] for point in points], values, total) for key in points[0]}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _explained(settings: list[Any], values: np.ndarray[Any, Any], total: float) -> float:
    """Give the share of `total`, the squared deviations of `values` `(points,)`, that lies between settings."""
    if total == 0:
        return 0.0
    labels = [str(setting) for setting in settings]
    if len(set(labels)) > NUM_BINS and all(isinstance(setting, int | float) for setting in settings):
        ranks = np.argsort(np.argsort(np.array(settings, dtype=np.float64), kind="stable"), kind="stable")
        labels = [str(rank * NUM_BINS // len(settings)) for rank in ranks.tolist()]
    groups = [values[[label == one for one in labels]] for label in dict.fromkeys(labels)]
    return sum(len(group) * float(group.mean() - values.mean()) ** 2 for group in groups) / total
