"""The report of one evaluation: what the figures are, what they look like, and where to doubt them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.evaluation import comparison, figures, report
from upfield.evaluation.measure import AGAINST, CUBIC, MODEL, VolumeImages
from upfield.evaluation.metrics import METRICS
from upfield.evaluation.report import Section
from upfield.evaluation.summary import TRUST, Evaluated, counted, groups, notes
from upfield.export.viewer import viewer_html

# nilearn draws the planes side by side, in a little more than the height of the highest.
VIEWER_ROOM = 1.12
GROUP_METRICS = ("psnr_slice", "psnr_slice_foreground", "ssim_slice", "ms_ssim_axial", "nrmse", "score_ulf_enc")
RESEARCH_USE = (
    "The restored images are made by a neural network: for research, not for diagnosis. Structure that is not in the "
    "low-field scan cannot come from it."
)


@dataclass(frozen=True)
class TrainingRecord:
    """What a run remembers of its training."""

    log: list[dict[str, Any]]
    """Lines of its metrics.jsonl."""
    configuration: str
    """Its config.yaml."""

    @classmethod
    def of(cls, model: Path) -> "TrainingRecord | None":
        """Read a run's; a model file has none."""
        if not model.is_dir():
            return None
        log, config = model / "metrics.jsonl", model / "best" / "config.yaml"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        return cls([entry for line in lines if (entry := _parsed(line))], config.read_text(encoding="utf-8"))


def _parsed(line: str) -> dict[str, Any] | None:
    """Read a line of the log; one that a killed job left unfinished says nothing."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def write_evaluation_report(
    path: Path,
    tree: dict[str, Any],
    evaluated: Evaluated,
    slices_png: bytes | None,
    images: VolumeImages,
    training: TrainingRecord | None,
) -> None:
    """Write the self-contained report of one evaluation.

    Args:
        path: the HTML file.
        tree: what metrics.json holds.
        evaluated: the figures behind it.
        slices_png: best, median and worst slice; None where there are none to show.
        images: of the volume that is shown.
        training: of the model, where it is known.

    Raises:
        InputError: matplotlib or nilearn is not installed.
    """
    about = tree["about"]
    sections = [
        report.paragraph(
            f"{counted(about)}: {about['restorer']}." + (f" Against: {about['against']}." if AGAINST in tree else "")
        ),
        report.paragraph(RESEARCH_USE),
        report.metrics_table(tree, "Cubic interpolation and the model"),
        report.paragraph("\n\n".join([comparison.METHOD, *(f"{note[0].upper()}{note[1:]}." for note in notes(tree))])),
        *_against(tree),
        _spread(evaluated),
    ]
    if slices_png:
        sections.append(
            report.figure(
                slices_png,
                "Best, median and worst slice: low field, interpolated, restored, high field, errors",
                "By PSNR among slices of which the head fills at least 5%.",
                heading="Best, median, worst slice",
            )
        )
    cubic, restored = images.restored[CUBIC], images.restored[MODEL]
    sections += [
        report.paragraph(
            f"Volume {images.name}, the first of the split (a real one where there is any). Click to move the "
            "crosshair; the slider fades from the cubic interpolation to the restored volume.",
            "In three dimensions",
        ),
        report.embedded(
            viewer_html(cubic, restored, images.spacing_mm, images.name),
            f"Viewer of {images.name}",
            viewer_height(images),
        ),
        *_groups(evaluated),
        *_subjects(tree, evaluated.methods),
        *_doubts(tree, images),
        *_training(training),
        report.table(
            ["metric", "definition"], [[name, text] for name, text in tree["definitions"].items()], "Definitions"
        ),
        report.table(
            ["", ""],
            [["data", about["data_sha256"]], *([key, str(value)] for key, value in about["machine"].items())],
            "Machine and data",
        ),
        report.code_block("Configuration of this evaluation", json.dumps(about["configuration"], indent=2)),
        *([report.code_block("Configuration of the training", training.configuration)] if training else []),
        report.link_list({name: name for name in ("metrics.json", "slices.csv", "volumes.csv")}, "Files"),
    ]
    report.write_report(path, "Evaluation", sections, scripts=True)


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
        [METRICS[name].label, *(_signed(one[key], METRICS[name].digits) for key in ("mean", "low", "high")), _p(one)]
        for name, one in differences.items()
    ]
    return [report.table(["metric", "model - against", "from", "to", "p"], rows, "The model against the other")]


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"


def _p(difference: dict[str, Any]) -> str:
    return "-" if difference["p"] is None else f"{difference['p']:.3f}"


def _spread(evaluated: Evaluated) -> Section:
    psnr = {method: evaluated.values(method, "psnr_slice") for method in evaluated.methods}
    picture = figures.distribution_png(psnr)
    return report.figure(picture, "Distribution of PSNR over slices", heading="PSNR per slice")


def _groups(evaluated: Evaluated) -> list[Section]:
    """Give the breakdown per cohort, and real against synthetic."""
    rows: list[list[str | float]] = []
    for name, group in groups(evaluated).items():
        subjects = len({(volume.cohort, volume.subject) for volume in group.volumes})
        for method in group.methods:
            means = [_mean(group.values(method, metric), metric) for metric in GROUP_METRICS]
            rows.append([name, str(subjects), method, *means])
    labels = [METRICS[metric].label for metric in GROUP_METRICS]
    return [report.table(["cohort, kind", "subjects", "method", *labels], rows, "Per cohort, real and synthetic")]


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
    methods = list(trust)
    heading = "Where might it have invented something?"
    sections = [
        report.paragraph(
            f"Inconsistency is the {TRUST['inconsistency']}.\n\nDisagreement is the {TRUST['disagreement']}.\n\nWhat "
            "lies beyond the scanner's resolution leaves no trace in the scan: neither can vouch for it.",
            heading,
        ),
        report.figure(
            figures.bands_png({method: trust[method]["inconsistency_bands"] for method in methods}),
            "Energy that contradicts the scan, per band of spatial frequency",
            "Beyond what its grid can hold the scan has next to no energy: shares of it say little there.",
        ),
        report.table(
            ["volume", *(f"inconsistency, {m}" for m in methods), *(f"disagreement, {m}" for m in methods[1:])],
            [
                [name, *(_shown(trust[m]["volumes"][name]["inconsistency"], 4) for m in methods)]
                + [_shown(trust[m]["volumes"][name]["disagreement"], 4) for m in methods[1:]]
                for name in trust[MODEL]["volumes"]
            ],
        ),
    ]
    residual, doubt = images.residual[MODEL], images.disagreement.get(MODEL)
    measure = np.square(residual).mean(axis=(1, 2)) if doubt is None else doubt.mean(axis=(1, 2))
    at = int(measure.argmax())
    shown = {
        "restored": images.restored[MODEL][at],
        "high field": images.high[at],
        "contradicts the scan": residual[at],
    }
    limits = {"contradicts the scan": max(float(np.percentile(np.abs(residual), 99.9)), 1e-6)}
    if doubt is not None:
        shown["disagreement"] = doubt[at]
        limits["disagreement"] = max(float(np.percentile(doubt, 99.9)), 1e-6)
    caption = f"Volume {images.name}, the slice in which {'disagreement' if doubt is not None else 'it'} is largest."
    sections.append(report.figure(figures.doubts_png(shown, limits), "Maps of what is doubtful", caption))
    worst = tree["worst_slices"]
    header = [title for name in worst for title in (f"slices of most {name}", "value")]
    rows = [
        [cell for row in side_by_side for cell in (row["key"], f"{row['value']:.4f}")]
        for side_by_side in zip(*worst.values(), strict=True)
    ]
    return [*sections, report.table(header, rows)]


def _training(training: TrainingRecord | None) -> list[Section]:
    if training is None or not training.log:
        return [report.paragraph("A model file does not carry its training curve; evaluate the run to see it.")]
    curves = figures.curves_png(training.log)
    return [report.figure(curves, "Loss and validation PSNR over steps", heading="Training")]
