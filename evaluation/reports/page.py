"""The report of one evaluation: what the figures are, what they look like, and where to doubt them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common import html_page as report
from upfield.common.html_page import Section
from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.evaluation import comparison
from upfield.evaluation.measure import AGAINST, CUBIC, MODEL, VolumeImages
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.reports import figures
from upfield.evaluation.reports.metrics_table import metric_label, metrics_table
from upfield.evaluation.reports.viewer import viewer_html
from upfield.evaluation.summary import TRUST, Evaluated, counted, groups, notes

# nilearn draws the planes side by side, in a little more than the height of the highest.
VIEWER_ROOM = 1.12
GROUP_METRICS = ("psnr_slice", "psnr_slice_foreground", "ssim_slice", "ms_ssim_axial", "nrmse", "score_ulf_enc")
GAIN_METRICS = ("psnr_slice", "ssim_slice")
INTERVAL_HEADER = (f"{comparison.CONFIDENCE:.0%} interval", "p")
BEYOND = {True: "neither can vouch for it.", False: "this cannot vouch for it."}
RESEARCH_USE = (
    "The restored images are made by a neural network: for research, not for diagnosis. Structure that is not in the "
    "low-field scan cannot come from it."
)


@dataclass(frozen=True)
class TrainingRecord:
    """What is known of a model's training."""

    log: list[dict[str, Any]]
    """Lines of its run's metrics.jsonl; none for a model file."""
    configuration: str
    """As YAML."""

    @classmethod
    def of(cls, model: Path, configuration: str) -> "TrainingRecord":
        """Read a run's log; a model file has none."""
        log = model / LOG
        return cls(parse_log(log.read_text(encoding="utf-8")) if log.is_file() else [], configuration)


def write_evaluation_report(
    path: Path,
    tree: dict[str, Any],
    evaluated: Evaluated,
    slices_png: bytes | None,
    images: VolumeImages,
    training: TrainingRecord,
) -> None:
    """Write the self-contained report of one evaluation.

    Args:
        path: the HTML file.
        tree: what metrics.json holds.
        evaluated: the figures behind it.
        slices_png: best, median and worst slice; None where there are none to show.
        images: of the volume that is shown.
        training: of the model.

    Raises:
        InputError: matplotlib or nilearn is not installed.
    """
    about = tree["about"]
    sections = [
        report.paragraph(
            f"{counted(about)}: {about['restorer']}." + (f" Against: {about['against']}." if AGAINST in tree else "")
        ),
        report.paragraph(RESEARCH_USE),
        metrics_table(tree, "Cubic interpolation and the model"),
        report.paragraph("\n\n".join([comparison.METHOD, *(f"{note[0].upper()}{note[1:]}." for note in notes(tree))])),
        *_against(tree),
        _spread(evaluated),
        *_slices(slices_png),
        *_viewer(images),
        *_groups(tree, evaluated),
        *_subjects(tree, evaluated.methods),
        *_doubts(tree, images),
        _training(training),
        report.table(
            ["metric", "definition"], [[name, text] for name, text in tree["definitions"].items()], "Definitions"
        ),
        _origins(about),
        report.code_block("Configuration of this evaluation", json.dumps(about["configuration"], indent=2)),
        report.code_block("Configuration of the training", training.configuration),
        report.link_list({name: name for name in _files(slices_png)}, "Files"),
    ]
    report.write_report(path, title(about), sections, scripts=True)


def title(about: dict[str, Any]) -> str:
    """Name the report after the model."""
    path = Path(about["models"][MODEL]["path"])
    return f"Evaluation of {path.name or path.resolve().name}, split {about['split']}"


def _files(slices_png: bytes | None) -> list[str]:
    return ["metrics.json", "slices.csv", "volumes.csv", *(["slices.png"] if slices_png else [])]


def _slices(png: bytes | None) -> list[Section]:
    if not png:
        return []
    alt = "Best, median and worst slice: low field, interpolated, restored, high field, errors"
    caption = "By PSNR among slices of which the head fills at least 5%."
    return [report.figure(png, alt, caption, "Best, median, worst slice")]


def _viewer(images: VolumeImages) -> list[Section]:
    page = viewer_html(images.restored[CUBIC], images.restored[MODEL], images.spacing_mm, images.name)
    return [
        report.paragraph(
            f"Volume {images.name}, the first of the split (a real one where there is any). Click to move the "
            "crosshair; the slider fades from the cubic interpolation to the restored volume.",
            "In three dimensions",
        ),
        report.embedded(page, f"Viewer of {images.name}", viewer_height(images)),
    ]


def _origins(about: dict[str, Any]) -> Section:
    """Give where the models and the data come from, and what computed the figures."""
    rows = [["data of the set", about["data_sha256"]]]
    for name, origin in about["models"].items():
        rows.append([f"{name}, sha256", origin["sha256"]])
        rows.append([f"{name}, trained on data", origin["trained_on_sha256"]])
    return report.table(
        ["what", "which"], rows + [[name, str(value)] for name, value in about["machine"].items()], "Data and machine"
    )


def viewer_height(images: VolumeImages) -> float:
    """Give the height of the viewer's picture in units of its width."""
    across, along, up = np.array(images.high.shape) * images.spacing_mm
    return float(VIEWER_ROOM * max(along, up) / (along + 2 * across))


def _against(tree: dict[str, Any]) -> list[Section]:
    """Give the table of the model against the other model."""
    differences = tree["differences"].get(f"{MODEL} - {AGAINST}")
    if not differences:
        return []
    rows = [
        [metric_label(METRICS[name]), *_difference_cells(one, METRICS[name].digits)]
        for name, one in differences.items()
    ]
    header = ["metric", "model - against", *INTERVAL_HEADER]
    return [report.table(header, rows, "The model against the other")]


def _difference_cells(difference: dict[str, Any] | None, digits: int) -> list[str]:
    """Spell a difference, its interval and p."""
    if difference is None:
        return ["-"] * 3
    low, high = (_signed(difference[end], digits) for end in ("low", "high"))
    interval = "-" if difference["low"] is None else f"{low} to {high}"
    return [_signed(difference["mean"], digits), interval, _p(difference)]


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def _p(difference: dict[str, Any]) -> str:
    return "-" if difference["p"] is None else f"{difference['p']:.3f}"


def _spread(evaluated: Evaluated) -> Section:
    psnr = {method: evaluated.values(method, "psnr_slice") for method in evaluated.methods}
    picture = figures.distribution_png(psnr)
    return report.figure(picture, "Distribution of PSNR over slices", heading="PSNR per slice")


def _groups(tree: dict[str, Any], evaluated: Evaluated) -> list[Section]:
    """Give the breakdown per cohort, and real against synthetic: means, and what was gained."""
    means: list[list[str]] = []
    gains: list[list[str]] = []
    for name, group in groups(evaluated).items():
        subjects = str(len({(volume.cohort, volume.subject) for volume in group.volumes}))
        for method in group.methods:
            row = [_mean(group.values(method, metric), metric) for metric in GROUP_METRICS]
            means.append([name, subjects, method, *row])
        differences = tree["groups"][name]["differences"][f"{MODEL} - {CUBIC}"]
        cells = [_difference_cells(differences.get(metric), METRICS[metric].digits) for metric in GAIN_METRICS]
        gains.append([name, subjects, *(cell for row in cells for cell in row)])
    labels = [metric_label(METRICS[metric]) for metric in GROUP_METRICS]
    header = [title for metric in GAIN_METRICS for title in (f"{METRICS[metric].label}, gain", *INTERVAL_HEADER)]
    return [
        report.table(["cohort, kind", "subjects", "method", *labels], means, "Per cohort, real and synthetic"),
        report.table(["cohort, kind", "subjects", *header], gains),
    ]


def _mean(values: NDArray[np.float64], metric: str) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.{METRICS[metric].digits}f}" if len(finite) else "-"


def _subjects(tree: dict[str, Any], methods: tuple[str, ...]) -> list[Section]:
    rows = [
        [f"{row['cohort']}, {row['subject']}", *(_shown(row[m]["psnr_slice"], 2) for m in methods)]
        + [_shown(row[m]["ssim_slice"], 4) for m in methods]
        for row in tree["subjects"]
    ]
    header = ["subject", *(f"PSNR slice, {m}" for m in methods), *(f"SSIM slice, {m}" for m in methods)]
    return [report.table(header, rows, "Per subject")]


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _doubts(tree: dict[str, Any], images: VolumeImages) -> list[Section]:
    """Give where the model may have invented something."""
    trust = tree["trust"]
    models = [method for method in trust if method != CUBIC]
    is_perturbed = trust[MODEL]["disagreement"] is not None
    words = [f"Inconsistency is the {TRUST['inconsistency']}."]
    words += [f"Disagreement is the {TRUST['disagreement']}."] if is_perturbed else []
    words.append(f"What lies beyond the scanner's resolution leaves no trace in the scan: {BEYOND[is_perturbed]}")
    doubts = [f"disagreement, {method}" for method in models if is_perturbed]
    rows = [
        [name, *(_shown(trust[method]["volumes"][name]["inconsistency"], 4) for method in trust)]
        + [_shown(trust[method]["volumes"][name]["disagreement"], 4) for method in models if is_perturbed]
        for name in trust[MODEL]["volumes"]
    ]
    return [
        report.paragraph("\n\n".join(words), "Where might it have invented something?"),
        report.figure(
            figures.bands_png({method: trust[method]["inconsistency_bands"] for method in trust}),
            "Energy that contradicts the scan, per band of spatial frequency",
            "Beyond what its grid can hold the scan has next to no energy: shares of it say little there.",
        ),
        report.table(["volume", *(f"inconsistency, {method}" for method in trust), *doubts], rows),
        *_maps(images),
        _worst(tree["worst_slices"]),
    ]


def _maps(images: VolumeImages) -> list[Section]:
    """Give the maps of doubt of each model, all of the slice in which the measured one's doubt is largest."""
    doubt = images.disagreement.get(MODEL)
    measure = np.square(images.residual[MODEL]).mean(axis=(1, 2)) if doubt is None else doubt.mean(axis=(1, 2))
    at = int(measure.argmax())
    maps = {"contradicts the scan": images.residual, "disagreement": images.disagreement}
    # One scale for all models: maps are there to be compared.
    ends = {
        title: max(1e-6, *(float(np.percentile(np.abs(found[m]), 99.9)) for m in found if m != CUBIC))
        for title, found in maps.items()
        if MODEL in found
    }
    what = "the model's disagreement" if doubt is not None else "what of the model's contradicts the scan"
    sections: list[Section] = []
    for method in (m for m in (MODEL, AGAINST) if m in images.restored):
        shown = {"restored": images.restored[method][at], "high field": images.high[at]}
        shown |= {title: maps[title][method][at] for title in ends}
        caption = f"Volume {images.name}, {method}: the slice in which {what} is largest."
        sections.append(report.figure(figures.doubts_png(shown, ends), f"Maps of doubt, {method}", caption))
    return sections


def _worst(worst: dict[str, list[dict[str, Any]]]) -> Section:
    header = [title for name in worst for title in (f"slices of most {name}", "value")]
    rows = [
        [cell for row in side_by_side for cell in (row["key"], f"{row['value']:.4f}")]
        for side_by_side in zip(*worst.values(), strict=True)
    ]
    return report.table(header, rows)


def _training(training: TrainingRecord) -> Section:
    if not training.log:
        return report.paragraph(
            "A model file does not carry its training curve; evaluate the run to see it.", "Training"
        )
    curves = figures.curves_png(training.log)
    return report.figure(curves, "Loss and validation PSNR over steps", heading="Training")
