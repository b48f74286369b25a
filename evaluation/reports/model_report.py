"""The folder of one model's report: metrics.json, CSV files, a picture of slices, and the page."""

from pathlib import Path

from upfield.common.files import write_bytes, write_json, write_text
from upfield.evaluation.reports.csv_files import slices_csv, volumes_csv
from upfield.evaluation.reports.figures import example_slices_png
from upfield.evaluation.reports.page import write_page
from upfield.evaluation.reports.report_content import ReportContent

PAGE, METRICS_JSON, SLICES_PNG = "report.html", "metrics.json", "slices.png"
SLICES_CSV, VOLUMES_CSV = "slices.csv", "volumes.csv"


def write_model_report(folder: Path, content: ReportContent) -> Path:
    """Write all files of one model's report, and return the path of its page.

    Raises:
        InputError: matplotlib is not installed.
    """
    write_json(folder / METRICS_JSON, content.metrics)
    write_text(folder / SLICES_CSV, slices_csv(content.result))
    write_text(folder / VOLUMES_CSV, volumes_csv(content.result))
    png = example_slices_png(content.examples) if content.examples else None
    if png:
        write_bytes(folder / SLICES_PNG, png)
    files = [METRICS_JSON, SLICES_CSV, VOLUMES_CSV, *([SLICES_PNG] if png else [])]
    write_page(folder / PAGE, content, png, files)
    return folder / PAGE
