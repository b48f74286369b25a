"""`upfield evaluate`: metrics and a report for a run or an ONNX file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.evaluation.configuration import EvaluateConfig
from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError

if TYPE_CHECKING:
    from upfield.evaluation.figures import Triplet
    from upfield.evaluation.measure import Measured


def evaluate(config: EvaluateConfig) -> None:
    """Measure, write metrics.json, slices.csv and report.html, and print the table."""
    from upfield.evaluation.measure import measure, slices_csv
    from upfield.evaluation.restorers import open_restorer
    from upfield.evaluation.triplets import pick_triplets
    from upfield.sharding.atomic import write_json, write_text
    from upfield.sharding.manifest import read_manifest
    from upfield.sharding.shardset import ShardSplit

    assert config.model is not None
    assert config.shards is not None
    assert config.out is not None
    manifest = read_manifest(config.shards)
    split = ShardSplit(config.shards, config.split, manifest)
    if split.num_samples == 0:
        raise InputError(
            f"{config.shards}: expected samples in split {config.split}, found none; choose another --split"
        )
    restorer = open_restorer(config.model, config.device, manifest)
    measured = measure(restorer, split, config.batch_size)
    metrics = summarise(measured, config, restorer.description, manifest.data_sha256)
    write_json(config.out / "metrics.json", metrics)
    write_text(config.out / "slices.csv", slices_csv(measured))
    write_evaluation_report(config.out / "report.html", metrics, measured, pick_triplets(measured, split, restorer))
    print(table(metrics))
    print(f"{config.out / 'report.html'}")


def summarise(measured: "Measured", config: EvaluateConfig, model: str, data_sha256: str) -> dict[str, Any]:
    """Give what metrics.json holds: statistics per method and metric, and what they are of."""
    from upfield.evaluation.measure import statistics
    from upfield.model.quality import DEFINITIONS

    summary = {
        method: {metric: statistics(values) for metric, values in by_metric.items()}
        for method, by_metric in measured.values.items()
    }
    about = {"restorer": model, "split": config.split, "data_sha256": data_sha256, "slices": len(measured.keys)}
    return summary | {"about": about, "definitions": DEFINITIONS}


def table(metrics: dict[str, Any]) -> str:
    """Give the table that ends the command: cubic interpolation against the model, mean and median."""
    from upfield.model.quality import DEFINITIONS

    about = metrics["about"]
    lines = [f"{about['slices']} slices of split {about['split']}: {about['restorer']}"]
    lines.append(
        f"{'':<12} {'cubic mean':>11} {'model mean':>11} {'gain':>9} {'cubic median':>13} {'model median':>13}"
    )
    for metric in DEFINITIONS:
        cubic, model = metrics["cubic"][metric], metrics["model"][metric]
        if cubic["mean"] is None or model["mean"] is None:
            continue
        digits = 2 if metric.startswith("psnr") else 4
        gain = model["mean"] - cubic["mean"]
        lines.append(
            f"{metric:<12} {cubic['mean']:>11.{digits}f} {model['mean']:>11.{digits}f} {gain:>+9.{digits}f} "
            f"{cubic['median']:>13.{digits}f} {model['median']:>13.{digits}f}"
        )
    return "\n".join(lines)


def write_evaluation_report(
    path: Path, metrics: dict[str, Any], measured: "Measured", triplets: list["Triplet"]
) -> None:
    """Write the self-contained report of one evaluation."""
    from upfield.evaluation import figures, report

    psnr = {method: by_metric["psnr_slice"] for method, by_metric in measured.values.items()}
    about = metrics["about"]
    sections = [
        report.paragraph(f"{about['slices']} slices of split {about['split']}: {about['restorer']}."),
        report.metrics_table(metrics, "Cubic interpolation against the model"),
        report.figure(figures.distribution_png(psnr), "Distribution of PSNR over slices", heading="PSNR per slice"),
        report.figure(figures.triplets_png(triplets), "Slices before and after", heading="Best, median, worst slice"),
        report.link_list({"metrics.json": "metrics.json", "slices.csv": "slices.csv"}, "Files"),
    ]
    report.write_report(path, "Evaluation", sections)


COMMAND = Command("evaluate", EvaluateConfig, evaluate, positional=("model",), required=("model", "shards", "out"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
