"""Several models in one table: means under every metric, and differences with their intervals and tests."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upfield.common import html_page as report
from upfield.common.files import write_json, write_text
from upfield.common.tables import text_table
from upfield.evaluation import comparison
from upfield.evaluation.measure import CUBIC
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.summary import Evaluated, counted, statistics

MAIN_METRICS = ("psnr_slice", "psnr_slice_foreground", "ssim_slice", "ms_ssim_axial", "nrmse", "score_ulf_enc")
FIRST = "psnr_slice"
UNCORRECTED = "Many tests find something by chance: p is not corrected for their number."


def write_comparison(out: Path, evaluated: Evaluated, models: Sequence[str], reports: Mapping[str, str]) -> None:
    """Write compare.json, compare.csv and compare.html, and print the table.

    Args:
        out: folder for them.
        evaluated: all methods, cubic interpolation first.
        models: those of the methods that are compared, the first being what the others are measured by.
        reports: model -> its own report, relative to `out`.
    """
    tree = comparison_tree(evaluated, models)
    write_json(out / "compare.json", tree)
    write_text(out / "compare.csv", means_csv(tree))
    title = f"{counted(evaluated.about)}: means"
    header = ["", *(label(metric) for metric in MAIN_METRICS)]
    rows = [[name, *(mean(tree, name, metric) for metric in MAIN_METRICS)] for name in evaluated.methods]
    differences = list(difference_rows(tree, (FIRST,)))
    write_page(out / "compare.html", evaluated, tree, reports)
    print(f"\n{title}")
    print(text_table(header, rows, numeric=True))
    print(f"\n{METRICS[FIRST].label}, differences over subjects")
    print(text_table(["", *DIFFERENCE_HEADER], [[row[0], *row[2:]] for row in differences], numeric=True))
    print(f"{out / 'compare.html'}", flush=True)


def comparison_tree(evaluated: Evaluated, models: Sequence[str]) -> dict[str, Any]:
    """Give what compare.json holds: statistics of each method, and differences to interpolation and the first model."""
    others = [method for method in evaluated.methods if method not in (CUBIC, models[0])]
    pairs = [(method, CUBIC) for method in evaluated.methods if method != CUBIC]
    pairs += [(method, models[0]) for method in others]
    return {
        "methods": {
            method: {metric: statistics(evaluated.values(method, metric)) for metric in METRICS}
            for method in evaluated.methods
        },
        "differences": [
            {
                "method": method,
                "other": other,
                "metrics": comparison.differences(evaluated.volumes, method, other),
            }
            for method, other in pairs
        ],
        "differences_method": f"{comparison.METHOD} {UNCORRECTED}",
        "definitions": {name: metric.definition for name, metric in METRICS.items()},
        "about": {
            name: evaluated.about[name]
            for name in ("split", "data_sha256", "slices", "subjects", "volumes", "machine", "configuration")
        },
    }


def means_csv(tree: dict[str, Any]) -> str:
    """Give one line per method: its mean under each metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["model", *METRICS])
    for method, found in tree["methods"].items():
        writer.writerow([method, *(found[metric]["mean"] for metric in METRICS)])
    return buffer.getvalue()


def label(metric: str) -> str:
    """Name a metric, and say when less of it is better."""
    return METRICS[metric].label + ("" if METRICS[metric].higher_is_better else " (lower)")


def mean(tree: dict[str, Any], method: str, metric: str) -> str:
    """Spell a method's mean."""
    value = tree["methods"][method][metric]["mean"]
    return "-" if value is None else f"{value:.{METRICS[metric].digits}f}"


DIFFERENCE_HEADER = ("difference", f"{comparison.CONFIDENCE:.0%} interval", "p", "subjects")


def difference_rows(tree: dict[str, Any], metrics: Sequence[str]) -> Iterator[list[str]]:
    """Give a row per pair and metric: which, the metric, and what DIFFERENCE_HEADER names."""
    for pair in tree["differences"]:
        for metric in metrics:
            found = pair["metrics"].get(metric)
            if found:
                digits = METRICS[metric].digits
                interval, p = "-", "-"
                if found["low"] is not None:
                    interval = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
                    p = f"{found['p']:.3f}"
                yield [
                    f"{pair['method']} - {pair['other']}",
                    label(metric),
                    f"{found['mean']:+.{digits}f}",
                    interval,
                    p,
                    str(found["subjects"]),
                ]


def write_page(path: Path, evaluated: Evaluated, tree: dict[str, Any], reports: Mapping[str, str]) -> None:
    """Write the page: means of all metrics, differences, definitions."""
    about = evaluated.about
    defined = [metric for metric in METRICS if any(mean(tree, name, metric) != "-" for name in evaluated.methods)]
    rows = [[label(metric), *(mean(tree, name, metric) for name in evaluated.methods)] for metric in defined]
    sections = [
        report.paragraph(f"{counted(about)}. Means are over slices or volumes."),
        report.table(["metric", *evaluated.methods], rows, "Means"),
        report.paragraph(tree["differences_method"], "Differences"),
        report.table(["", "metric", *DIFFERENCE_HEADER], list(difference_rows(tree, MAIN_METRICS))),
        report.table(["metric", "definition"], list(tree["definitions"].items()), "Definitions"),
        report.table(
            ["", "found"],
            [["data", about["data_sha256"]], *([name, str(value)] for name, value in about["machine"].items())],
            "Data and machine",
        ),
        report.link_list({f"Report of {name}": place for name, place in reports.items()}, "Reports"),
        report.link_list({name: name for name in ("compare.json", "compare.csv")}),
    ]
    report.write_report(path, f"Comparison of {len(reports)} models", sections)
