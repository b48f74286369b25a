"""The HTML table of metrics.json."""

from collections.abc import Mapping
from typing import Any

from upfield.common import html_page
from upfield.evaluation.metrics import METRICS, Metric
from upfield.evaluation.reports.cells import DIFFERENCE_HEADER, difference_cells, number_cell

KINDS = ("mean", "median")
# The difference follows the name of the metric and the means of cubic interpolation and of the model.
GAIN_COLUMN = 3


def metrics_table(tree: Mapping[str, Any], heading: str = "") -> html_page.Section:
    """Build a table with one row per metric: mean and median of each method, and the model's difference from cubic.

    Args:
        tree: the contents of metrics.json, of which only the statistics of each method and `differences` are read.
        heading: heading of the section.
    """
    methods = [method for method in ("cubic", "model", "against") if method in tree]
    values = [(method, kind) for kind in KINDS for method in methods]
    header = ["metric", *(f"{method}, {kind}" for method, kind in values)]
    # Phones show only the first columns without scrolling.
    header[GAIN_COLUMN:GAIN_COLUMN] = ["model - cubic", *DIFFERENCE_HEADER]
    gains = tree.get("differences", {}).get("model - cubic", {})
    rows: list[list[str]] = []
    for name, metric in METRICS.items():
        if any(name not in tree[method] for method in methods):
            continue
        row = [metric_label(metric), *(number_cell(tree[m][name][kind], metric.digits) for m, kind in values)]
        row[GAIN_COLUMN:GAIN_COLUMN] = difference_cells(gains.get(name), metric.digits)
        rows.append(row)
    return html_page.table(header, rows, heading)


def metric_label(metric: Metric) -> str:
    """Return a metric's name with its unit, and with a note if lower values are better."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.label}{unit}{'' if metric.higher_is_better else ', lower is better'}"
