"""The table of metrics.json on a page."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from upfield.common import html_page
from upfield.evaluation.metrics import METRICS, Metric


def metrics_table(tree: Mapping[str, Any], heading: str = "") -> html_page.Section:
    """Build the table of metrics.json: one row per metric, with each method's mean and median, and the gain.

    Args:
        tree: `cubic`, `model` and perhaps `against`, each metric -> `mean`, `median` and others; `differences`.
        heading: heading of the section.
    """
    methods = [method for method in ("cubic", "model", "against") if method in tree]
    header = ["metric", *(f"{method}, {kind}" for kind in ("mean", "median") for method in methods)]
    header += ["gain over cubic", "95% interval", "p"]
    gains = tree.get("differences", {}).get("model - cubic", {})
    rows: list[list[str | float]] = []
    for name, metric in METRICS.items():
        if any(name not in tree[method] for method in methods):
            continue
        shown = [_number(metric, tree[method][name][kind]) for kind in ("mean", "median") for method in methods]
        gain = gains.get(name) or dict.fromkeys(("mean", "low", "high", "p"))
        interval = "-"
        if gain["low"] is not None:
            interval = f"{_number(metric, gain['low'], '+')} to {_number(metric, gain['high'], '+')}"
        p = "-" if gain["p"] is None else f"{gain['p']:.3f}"
        rows.append([metric_label(metric), *shown, _number(metric, gain["mean"], "+"), interval, p])
    return html_page.table(header, rows, heading)


def metric_label(metric: Metric) -> str:
    """Return a metric's name with its unit, and with a note if lower values are better."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.label}{unit}{'' if metric.higher_is_better else ', lower is better'}"


def _number(metric: Metric, value: float | None, sign: str = "") -> str:
    if value is None or not isfinite(value):
        return "-"
    return f"{value:{sign}.{metric.digits}f}"
