"""The table of metrics.json as plain text, which the command prints at the end."""

import textwrap
from typing import Any

from upfield.common.tables import text_table
from upfield.evaluation.measurements import AGAINST, CUBIC, MODEL
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.reports.cells import DIFFERENCE_HEADER, difference_cells, number_cell
from upfield.evaluation.reports.notes import counts_text, notes


def metrics_text(tree: dict[str, Any], width: int | None = None) -> str:
    """Format the mean of each metric for each method, the differences of the model, and the notes.

    Args:
        tree: the contents of metrics.json.
        width: characters per line at which text is wrapped; None wraps nothing. The table is never wrapped.
    """
    methods = [method for method in (CUBIC, MODEL, AGAINST) if method in tree]
    about = tree["about"]
    # A single subject has neither an interval nor a p-value.
    difference_header = DIFFERENCE_HEADER if about["subjects"] > 1 else ()
    others = [other for other in (CUBIC, AGAINST) if other in methods]
    header = ["", *(f"{method} mean" for method in methods)]
    header += [title for other in others for title in (f"{MODEL} - {other}", *difference_header)]
    rows: list[list[str]] = []
    for name, metric in METRICS.items():
        means = [tree[method][name]["mean"] for method in methods]
        if means == [None] * len(means):
            continue
        row = [name if metric.higher_is_better else f"{name} (lower)"]
        row += [number_cell(mean, metric.digits) for mean in means]
        for other in others:
            cells = difference_cells(tree["differences"][f"{MODEL} - {other}"].get(name), metric.digits)
            row += cells[: 1 + len(difference_header)]
        rows.append(row)
    against = [f"against: {about['against']}"] if AGAINST in methods else []
    table = text_table(header, rows, numeric=True)
    if width is not None and max(map(len, table.splitlines())) > width:
        # With several subjects, full titles need 87 columns. A note below says that these are means.
        table = text_table([title.removesuffix(" mean") for title in header], rows, numeric=True)
    return "\n".join(
        [
            *_wrap([f"{counts_text(about)}: {about['restorer']}", *against], width),
            table,
            *_wrap([f"{note[0].upper()}{note[1:]}." for note in notes(tree)], width),
        ]
    )


def _wrap(texts: list[str], width: int | None) -> list[str]:
    return texts if width is None else [textwrap.fill(text, width, break_on_hyphens=False) for text in texts]
