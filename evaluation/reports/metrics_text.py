"""The table of metrics.json as plain text, which ends the command."""

from typing import Any

from upfield.evaluation.measurements import AGAINST, CUBIC, MODEL
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.paired_differences import CONFIDENCE
from upfield.evaluation.reports.notes import counts_text, notes

# Columns that do not have the usual width.
WIDTHS = {f"{CONFIDENCE:.0%} interval": 22, "p": 8}


def metrics_text(tree: dict[str, Any]) -> str:
    """Format each method's mean under each metric, the model's differences, and the notes.

    Args:
        tree: the contents of metrics.json.
    """
    methods = [method for method in (CUBIC, MODEL, AGAINST) if method in tree]
    about = tree["about"]
    columns = WIDTHS if about["subjects"] > 1 else {}
    others = [other for other in (CUBIC, AGAINST) if other in methods]
    titles = [f"{method} mean" for method in methods]
    titles += [title for other in others for title in (f"{MODEL} - {other}", *columns)]
    lines = [f"{counts_text(about)}: {about['restorer']}"]
    lines += [f"against: {about['against']}"] if AGAINST in methods else []
    lines.append(f"{'':<22}" + "".join(f"{title:>{WIDTHS.get(title, 16)}}" for title in titles))
    for name, metric in METRICS.items():
        means = [tree[method][name]["mean"] for method in methods]
        if means == [None] * len(means):
            continue
        numbers = "".join(f"{'-':>16}" if mean is None else f"{mean:>16.{metric.digits}f}" for mean in means)
        numbers += "".join(
            _difference(tree["differences"][f"{MODEL} - {other}"].get(name), metric.digits, bool(columns))
            for other in others
        )
        lines.append(f"{name if metric.higher_is_better else f'{name} (lower)':<22}{numbers}".rstrip())
    return "\n".join([*lines, *notes(tree)])


def _difference(difference: dict[str, Any] | None, digits: int, with_interval: bool) -> str:
    room = sum(WIDTHS.values()) if with_interval else 0
    if difference is None:
        return f"{'-':>16}{'':{room}}" if room else f"{'-':>16}"
    mean = f"{difference['mean']:>+16.{digits}f}"
    if difference["low"] is None:
        return mean + " " * room
    interval = f"{difference['low']:+.{digits}f} .. {difference['high']:+.{digits}f}"
    return f"{mean}{interval:>22}{difference['p']:>8.3f}"
