"""The comparison of several models: compare.json, compare.csv, compare.html, and the printed tables."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upfield.common import html_page
from upfield.common.files import write_json, write_text
from upfield.common.tables import text_table
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.reports.cells import DIFFERENCE_HEADER, difference_cells, number_cell
from upfield.evaluation.reports.csv_files import means_csv
from upfield.evaluation.reports.notes import counts_text
from upfield.evaluation.summary import EvaluationResult, comparison_tree

MAIN_METRICS = ("psnr_slice", "psnr_slice_foreground", "ssim_slice", "ms_ssim_axial", "nrmse", "score_ulf_enc")
FIRST = "psnr_slice"
PAGE, COMPARE_JSON, COMPARE_CSV = "compare.html", "compare.json", "compare.csv"
HEADER = ("difference", *DIFFERENCE_HEADER, "subjects")


def write_comparison(out: Path, result: EvaluationResult, models: Sequence[str], pages: Mapping[str, str]) -> None:
    """Write compare.json, compare.csv and compare.html, and print their main tables.

    Args:
        out: folder for the files.
        result: measurements for all methods, with cubic interpolation first.
        models: the evaluated models. All other methods are compared with the first of them.
        pages: model -> page of its report, relative to `out`.
    """
    tree = comparison_tree(result, models)
    write_json(out / COMPARE_JSON, tree)
    write_text(out / COMPARE_CSV, means_csv(tree))
    write_page(out / PAGE, result, tree, pages)
    print(f"\n{counts_text(result.about)}: means")
    header = ["", *(label(metric) for metric in MAIN_METRICS)]
    rows = [[name, *(mean(tree, name, metric) for metric in MAIN_METRICS)] for name in result.methods]
    print(text_table(header, rows, numeric=True))
    print(f"\n{METRICS[FIRST].label}, differences over subjects")
    rows = [[pair, *cells] for pair, _, *cells in difference_rows(tree, (FIRST,))]
    print(text_table(["", *HEADER], rows, numeric=True))
    print(f"{out / PAGE}", flush=True)


def label(metric: str) -> str:
    """Return a metric's name for tables, with `(lower)` if lower values are better."""
    return METRICS[metric].label + ("" if METRICS[metric].higher_is_better else " (lower)")


def mean(tree: dict[str, Any], method: str, metric: str) -> str:
    """Format the mean of a metric for a method; `-` if there is none."""
    return number_cell(tree["methods"][method][metric]["mean"], METRICS[metric].digits)


def difference_rows(tree: dict[str, Any], metrics: Sequence[str]) -> Iterator[list[str]]:
    """Yield one row for each pair of methods and each metric: the pair, the metric, and the columns of HEADER."""
    for pair in tree["differences"]:
        for metric in metrics:
            if difference := pair["metrics"].get(metric):
                cells = difference_cells(difference, METRICS[metric].digits)
                yield [f"{pair['method']} - {pair['other']}", label(metric), *cells, str(difference["subjects"])]


def write_page(path: Path, result: EvaluationResult, tree: dict[str, Any], pages: Mapping[str, str]) -> None:
    """Write compare.html: means of all metrics, differences, and definitions."""
    about = result.about
    defined = [metric for metric in METRICS if any(mean(tree, name, metric) != "-" for name in result.methods)]
    rows = [[label(metric), *(mean(tree, name, metric) for name in result.methods)] for metric in defined]
    machine = [[name, str(value)] for name, value in about["machine"].items()]
    sections = [
        html_page.paragraph(f"{counts_text(about)}. Means are over slices or volumes."),
        html_page.table(["metric", *result.methods], rows, "Means"),
        html_page.paragraph(tree["differences_method"], "Differences"),
        html_page.table(["", "metric", *HEADER], list(difference_rows(tree, MAIN_METRICS))),
        html_page.table(["metric", "definition"], list(tree["definitions"].items()), "Definitions"),
        html_page.table(["", "value"], [["data hash", about["data_sha256"]], *machine], "Data and machine"),
        html_page.link_list({f"Report of {name}": page for name, page in pages.items()}, "Reports"),
        html_page.link_list({name: name for name in (COMPARE_JSON, COMPARE_CSV)}),
    ]
    html_page.write_report(path, f"Comparison of {len(pages)} models", sections)
