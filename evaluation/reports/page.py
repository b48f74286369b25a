"""The page of one model's report: metrics, example images, and measures of trust in the restored volumes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upfield.common import html_page
from upfield.common.html_page import Section
from upfield.evaluation.measurements import AGAINST, CUBIC, MODEL, VolumeImages
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.paired_differences import METHOD
from upfield.evaluation.reports import figures
from upfield.evaluation.reports.cells import DIFFERENCE_HEADER, difference_cells, number_cell
from upfield.evaluation.reports.gain import gain_section
from upfield.evaluation.reports.metrics_table import metric_label, metrics_table
from upfield.evaluation.reports.notes import counts_text, notes
from upfield.evaluation.reports.report_content import ReportContent, TrainingRecord
from upfield.evaluation.reports.viewer import viewer_section
from upfield.evaluation.summary import TRUST, EvaluationResult, groups

GROUP_METRICS = ("psnr_slice", "psnr_slice_foreground", "ssim_slice", "ms_ssim_axial", "nrmse", "score_ulf_enc")
GAIN_METRICS = ("psnr_slice", "ssim_slice")
RESEARCH_USE = (
    "A neural network made the restored images. They are for research, not for diagnosis. Structure that the low-field "
    "scan does not contain comes from the network."
)
RESOLUTION_LIMIT = (
    "Structure finer than the scanner's resolution leaves no trace in the scan, so {measures} cannot confirm it."
)


def write_page(path: Path, content: ReportContent, slices_png: bytes | None, files: Sequence[str]) -> None:
    """Write the self-contained page of one model's report.

    Args:
        path: the HTML file.
        content: content of the report.
        slices_png: picture of the best, median and worst slice; None if there is none.
        files: names of the other files in the folder.

    Raises:
        InputError: matplotlib is not installed.
    """
    tree, about = content.metrics, content.metrics["about"]
    against = f" Against: {about['against']}." if AGAINST in tree else ""
    sections = [
        gain_section(tree),
        metrics_table(tree, "Cubic interpolation and the model"),
        html_page.paragraph(f"{counts_text(about)}: {about['restorer']}.{against}"),
        html_page.paragraph(RESEARCH_USE),
        html_page.paragraph("\n\n".join([METHOD, *(f"{note[0].upper()}{note[1:]}." for note in notes(tree))])),
        *_against(tree),
        _spread(content.result),
        *_slices(slices_png),
        viewer_section(content.images, "In three planes"),
        *_groups(tree, content.result),
        *_subjects(tree, content.result.methods),
        *_trust(tree, content.images),
        _training(content.training),
        html_page.table(
            ["metric", "definition"], [[name, text] for name, text in tree["definitions"].items()], "Definitions"
        ),
        _origins(about),
        html_page.code_block("Configuration of this evaluation", json.dumps(about["configuration"], indent=2)),
        html_page.code_block("Configuration of the training", content.training.configuration),
        html_page.link_list({name: name for name in files}, "Files"),
    ]
    html_page.write_report(path, title(about), sections)


def title(about: dict[str, Any]) -> str:
    """Return the title of the page, which names the model."""
    path = Path(about["models"][MODEL]["path"])
    return f"Evaluation of {path.name or path.resolve().name}, split {about['split']}"


def _slices(png: bytes | None) -> list[Section]:
    if not png:
        return []
    alt = "Best, median and worst slice: low field, interpolated, restored, high field, errors"
    caption = "Ranked by PSNR, among slices in which the head fills at least 5%."
    return [html_page.figure(png, alt, caption, "Best, median, worst slice")]


def _origins(about: dict[str, Any]) -> Section:
    """Build the table that lists the hashes of data and models, and describes the machine."""
    rows = [["data hash of the set", about["data_sha256"]]]
    for name, origin in about["models"].items():
        rows.append([f"{name}, sha256", origin["sha256"]])
        rows.append([f"{name}, data hash of its training", origin["trained_on_sha256"]])
    rows += [[name, str(value)] for name, value in about["machine"].items()]
    return html_page.table(["", "value"], rows, "Data and machine")


def _against(tree: dict[str, Any]) -> list[Section]:
    """Build the table of differences between the model and the one that it is compared with."""
    differences = tree["differences"].get(f"{MODEL} - {AGAINST}")
    if not differences:
        return []
    rows = [
        [metric_label(METRICS[name]), *difference_cells(difference, METRICS[name].digits)]
        for name, difference in differences.items()
    ]
    header = ["metric", "model - against", *DIFFERENCE_HEADER]
    return [html_page.table(header, rows, "Comparison with the other model")]


def _spread(result: EvaluationResult) -> Section:
    psnr = {method: result.values(method, "psnr_slice") for method in result.methods}
    picture = figures.distribution_png(psnr)
    return html_page.figure(picture, "Distribution of PSNR over slices", heading="PSNR per slice")


def _groups(tree: dict[str, Any], result: EvaluationResult) -> list[Section]:
    """Build two tables by cohort and kind: means, and gains over cubic interpolation."""
    means: list[list[str]] = []
    gains: list[list[str]] = []
    for name, group in groups(result).items():
        group_tree = tree["groups"][name]
        subjects = str(len({(volume.cohort, volume.subject) for volume in group.volumes}))
        for method in group.methods:
            row = [number_cell(group_tree[method][metric]["mean"], METRICS[metric].digits) for metric in GROUP_METRICS]
            means.append([name, subjects, method, *row])
        differences = group_tree["differences"][f"{MODEL} - {CUBIC}"]
        cells = [difference_cells(differences.get(metric), METRICS[metric].digits) for metric in GAIN_METRICS]
        gains.append([name, subjects, *(cell for row in cells for cell in row)])
    labels = [metric_label(METRICS[metric]) for metric in GROUP_METRICS]
    header = [title for metric in GAIN_METRICS for title in (f"{METRICS[metric].label}, gain", *DIFFERENCE_HEADER)]
    return [
        html_page.table(["cohort, kind", "subjects", "method", *labels], means, "Per cohort, real and synthetic"),
        html_page.table(["cohort, kind", "subjects", *header], gains),
    ]


def _subjects(tree: dict[str, Any], methods: tuple[str, ...]) -> list[Section]:
    rows = [
        [f"{row['cohort']}, {row['subject']}", *(number_cell(row[m]["psnr_slice"], 2) for m in methods)]
        + [number_cell(row[m]["ssim_slice"], 4) for m in methods]
        for row in tree["subjects"]
    ]
    header = ["subject", *(f"PSNR slice, {m}" for m in methods), *(f"SSIM slice, {m}" for m in methods)]
    return [html_page.table(header, rows, "Per subject")]


def _trust(tree: dict[str, Any], images: VolumeImages) -> list[Section]:
    """Build the sections on structure that the model may have invented."""
    trust = tree["trust"]
    models = [method for method in trust if method != CUBIC]
    is_perturbed = trust[MODEL]["disagreement"] is not None
    texts = [f"Inconsistency is the {TRUST['inconsistency']}."]
    texts += [f"Disagreement is the {TRUST['disagreement']}."] if is_perturbed else []
    texts.append(RESOLUTION_LIMIT.format(measures="these measures" if is_perturbed else "this measure"))
    doubts = [f"disagreement, {method}" for method in models if is_perturbed]
    rows = [
        [name, *(number_cell(trust[method]["volumes"][name]["inconsistency"], 4) for method in trust)]
        + [number_cell(trust[method]["volumes"][name]["disagreement"], 4) for method in models if is_perturbed]
        for name in trust[MODEL]["volumes"]
    ]
    return [
        html_page.paragraph("\n\n".join(texts), "Where might the model have invented structure?"),
        html_page.figure(
            figures.bands_png({method: trust[method]["inconsistency_bands"] for method in trust}),
            "Energy that contradicts the scan, per band of spatial frequency",
            "Beyond the limit of its grid, the scan has almost no energy, so the shares in that band say little.",
        ),
        html_page.table(["volume", *(f"inconsistency, {method}" for method in trust), *doubts], rows),
        *_maps(images),
        _worst(tree["worst_slices"]),
    ]


def _maps(images: VolumeImages) -> list[Section]:
    """Build the maps of each model for one slice: the slice in which the evaluated model is least trustworthy."""
    doubt = images.disagreement.get(MODEL)
    measure = np.square(images.residual[MODEL]).mean(axis=(1, 2)) if doubt is None else doubt.mean(axis=(1, 2))
    at = int(measure.argmax())
    maps = {"contradicts the scan": images.residual, "disagreement": images.disagreement}
    # One scale for all models, so that their maps can be compared.
    ends = {
        title: max(1e-6, *(float(np.percentile(np.abs(shown[m]), 99.9)) for m in shown if m != CUBIC))
        for title, shown in maps.items()
        if MODEL in shown
    }
    measure_name = "disagreement" if doubt is not None else "contradiction of the scan"
    sections: list[Section] = []
    for method in (m for m in (MODEL, AGAINST) if m in images.restored):
        shown = {"restored": images.restored[method][at], "high field": images.high[at]}
        shown |= {title: maps[title][method][at] for title in ends}
        caption = f"Volume {images.name}, {method}: the slice in which the model's {measure_name} is largest."
        sections.append(html_page.figure(figures.trust_maps_png(shown, ends), f"Trust maps, {method}", caption))
    return sections


def _worst(worst: dict[str, list[dict[str, Any]]]) -> Section:
    header = [title for name in worst for title in (f"slices with the largest {name}", "value")]
    rows = [
        [cell for row in side_by_side for cell in (row["key"], f"{row['value']:z.4f}")]
        for side_by_side in zip(*worst.values(), strict=True)
    ]
    return html_page.table(header, rows)


def _training(training: TrainingRecord) -> Section:
    if not training.log:
        return html_page.paragraph(
            "A model file does not contain the training curve. Evaluate the run to see it.", "Training"
        )
    curves = figures.curves_png(training.log)
    return html_page.figure(curves, "Loss and validation PSNR over steps", heading="Training")
