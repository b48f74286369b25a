"""The demonstration: every stage on phantoms, each through its own command, and one self-contained report."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from upfield.cli.accelerate_launcher import launch_command, run_launcher
from upfield.cli.configuration import DemoConfig
from upfield.cli.demo_folder import Places
from upfield.cli.stage_output import StageOutput, stages_for
from upfield.common import html_page
from upfield.common.command import EXIT_INTERRUPTED
from upfield.common.errors import RunError
from upfield.common.tables import terminal_width
from upfield.distributed.launch import SCRIPT
from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.evaluation.evaluate import main as evaluate_command
from upfield.evaluation.reports.figures import curves_png
from upfield.evaluation.reports.gain import gain_section
from upfield.evaluation.reports.metrics_table import metrics_table
from upfield.evaluation.reports.metrics_text import metrics_text
from upfield.evaluation.reports.model_report import SLICES_PNG
from upfield.export.enhance import main as enhance_command
from upfield.export.to_onnx import main as export_command
from upfield.imaging.nifti_writer import write_volume
from upfield.imaging.volume import read_stack
from upfield.sharding.phantom import main as phantom_command
from upfield.sharding.preview import main as preview_command
from upfield.sharding.shard import main as shard_command
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.verify import main as verify_command

RECIPE = "tiny_cpu.yaml"
PHANTOM_NOTE = (
    "All subjects are phantoms made from one template. Their figures show that every stage works, but they say nothing "
    "about patients."
)


def run_demonstration(config: DemoConfig, places: Places) -> None:
    """Run every stage, write the report, and print the metrics and what to open."""
    works: dict[str, Callable[[], str]] = {
        "cohort": lambda: make_cohort(config, places),
        "shards": lambda: make_shards(places),
        "training": lambda: train(config, places),
        "evaluation": lambda: evaluate(places),
        "export": lambda: export(places),
        "enhance": lambda: enhance(places),
    }
    stages = stages_for(config.max_steps)
    with StageOutput(stages, places.log) as output:
        for stage in stages:
            measure = partial(training_share, config, places) if stage.name == "training" else None
            output.run(stage, works[stage.name], measure)
    write_demo_report(places, output.times_s)
    print("\n" + final_table(places, output.times_s))


def make_cohort(config: DemoConfig, places: Places) -> str:
    """Write the phantom cohort."""
    run_stage(phantom_command, places.cohort, "--subjects", config.subjects, "--seed", config.seed)
    return f"{config.subjects} phantom heads in {places.cohort}"


def make_shards(places: Places) -> str:
    """Build the shard set, verify it, and draw pairs from it."""
    run_stage(shard_command, "--config", places.cohort / "cohorts.yaml", "--out", places.shards)
    run_stage(verify_command, places.shards)
    run_stage(preview_command, places.shards, "--out", places.out / "pairs.png")
    manifest = read_manifest(places.shards)
    num_pairs = sum(shard.samples for split in SPLITS for shard in manifest.shards(split))
    return f"{num_pairs} pairs of slices, verified, in {places.shards}"


def train(config: DemoConfig, places: Places) -> str:
    """Train the tiny preset through `accelerate launch`, as on a cluster.

    Raises:
        RunError: training failed, or a signal stopped it.
    """
    recipe = SCRIPT.parent / "recipes" / RECIPE
    arguments = ["--config", recipe, "--data.shards", places.shards, "--run.out", places.run, "--run.seed", config.seed]
    arguments += ["--run.precision", precision()]
    if config.max_steps is not None:
        arguments += ["--run.max_steps", config.max_steps]
    command = [*launch_command(processes=1), str(SCRIPT), *map(str, arguments)]
    code, stopped = run_launcher(command, dict(os.environ))
    if stopped:
        raise RunError("A signal stopped the training. Run the same command to start the demonstration again.")
    if code:
        raise RunError(f"The training ended with exit code {code}. Its error is printed above.")
    best = json.loads((places.run / "best" / "metrics.json").read_text(encoding="utf-8"))
    psnr, cubic = best["validation"]["psnr_slice"], best["validation"]["cubic_psnr_slice"]
    return f"validation PSNR {psnr:.2f} dB, cubic interpolation {cubic:.2f} dB"


def training_share(config: DemoConfig, places: Places) -> float:
    """Return how much of the training is done, from 0 to 1, according to the log of the run."""
    log = places.run / LOG
    last = (parse_log(log.read_text(encoding="utf-8")) if log.is_file() else [])[-1:]
    if not last:
        return 0.0
    # The recipe trains for one epoch.
    return last[0]["epoch"] if config.max_steps is None else last[0]["step"] / config.max_steps


def precision() -> str:
    """Return `bf16` if the hardware supports it, otherwise `no`: emulated bf16 is slower than float32."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace") if cpu.is_file() else ""
    return "bf16" if torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags else "no"


def evaluate(places: Places) -> str:
    """Measure the best model on the held-out subject."""
    run_stage(evaluate_command, places.run, "--shards", places.shards, "--split", "test", "--out", places.evaluation)
    cubic, model = (read_metrics(places)[method]["psnr_slice"]["mean"] for method in ("cubic", "model"))
    return f"held-out PSNR {model:.2f} dB, cubic interpolation {cubic:.2f} dB"


def export(places: Places) -> str:
    """Write the model file."""
    metrics = places.evaluation / "metrics.json"
    run_stage(export_command, places.run, "--out", places.model, "--evaluation", metrics)
    return f"{places.model}, {places.model.stat().st_size / 1e6:.1f} MB"


def enhance(places: Places) -> str:
    """Enhance the held-out subject's low-field scan with the model file alone."""
    subject = held_out_subject(places)
    slices = sorted((places.cohort / "real" / "low").glob(f"{subject}_slice_*.nii.gz"))
    scan = places.out / "scan" / f"{subject}.nii.gz"
    scan.parent.mkdir()
    # The cohort holds one file per slice, but a scanner writes one file per scan.
    write_volume(read_stack(slices), scan)
    run_stage(enhance_command, places.model, scan, "--out", places.enhanced, "--contrast", "T1w")
    return str(next(iter(enhanced_scans(places))))


def held_out_subject(places: Places) -> str:
    """Return the id of the first test subject."""
    return read_manifest(places.shards).subjects("test")[0]["subject"]


def run_stage(main: Callable[[list[str]], int], *arguments: object) -> None:
    """Run the command of a stage as a user would.

    Raises:
        RunError: the command failed and has printed its own error.
        KeyboardInterrupt: the command was interrupted.
    """
    code = main([str(argument) for argument in arguments])
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RunError(f"This stage ended with exit code {code}. Its error is printed above.")


def enhanced_scans(places: Places) -> list[Path]:
    """Return the enhanced scans."""
    return sorted(places.enhanced.glob("*.nii.gz"))


def write_demo_report(places: Places, times_s: Mapping[str, float]) -> None:
    """Write `report.html`: metrics, training curves, slices, times, configuration, and links to all files."""
    metrics = read_metrics(places)
    log = parse_log((places.run / LOG).read_text(encoding="utf-8"))
    files = {str(p.relative_to(places.out)): str(p.relative_to(places.out)) for p in linked_files(places)}
    configuration = (places.run / "config.yaml").read_text(encoding="utf-8")
    cohorts = (places.cohort / "cohorts.yaml").read_text(encoding="utf-8")
    viewer = {"Report of the evaluation, with a viewer in three planes": "evaluation/report.html"}
    sections = [
        gain_section(metrics),
        html_page.paragraph(PHANTOM_NOTE),
        html_page.link_list(viewer),
        metrics_table(metrics, "Cubic interpolation and the model, on the held-out head"),
        html_page.figure(
            (places.evaluation / SLICES_PNG).read_bytes(),
            "Best, median and worst slice: low field, interpolated, restored, high field, errors",
            "Best, median and worst slice by PSNR, of those in which the head fills at least 5%.",
            "Low field, restored, high field",
        ),
        html_page.figure(curves_png(log), "Loss and validation PSNR over steps", heading="Training"),
        html_page.figure(
            (places.out / "pairs.png").read_bytes(),
            "Pairs of the shard set: low field, high field, and edges of the high field on the low",
            heading="Pairs of slices for training",
        ),
        html_page.table(["stage", "seconds"], [[stage, f"{s:.0f}"] for stage, s in times_s.items()], "Time"),
        html_page.code_block("Training configuration", configuration, "Configuration"),
        html_page.code_block("Cohorts", cohorts),
        html_page.link_list(files, "Files"),
    ]
    html_page.write_report(places.report, "upfield: every stage on phantom heads", sections)


def linked_files(places: Places) -> list[Path]:
    """Return the files that the report links to."""
    enhanced = sorted(places.enhanced.iterdir())
    scan = sorted((places.out / "scan").iterdir())
    pages = [places.evaluation / "report.html", places.evaluation / "metrics.json", places.evaluation / "slices.csv"]
    return [*enhanced, *scan, places.model, *pages, places.shards / "manifest.json", places.run / LOG]


def read_metrics(places: Places) -> dict[str, Any]:
    """Read the metrics of the evaluation."""
    return json.loads((places.evaluation / "metrics.json").read_text(encoding="utf-8"))


def final_table(places: Places, times_s: Mapping[str, float]) -> str:
    """Return the closing text of the demonstration: metrics, time, and what to open."""
    return "\n".join(
        [
            f"Held-out phantom head {held_out_subject(places)}",
            metrics_text(read_metrics(places), terminal_width(sys.stdout)),
            textwrap.fill(PHANTOM_NOTE, 80),
            "",
            f"Time: {sum(times_s.values()):.0f} s",
            "Open next:",
            *text_of_files(places),
        ]
    )


def text_of_files(places: Places) -> list[str]:
    """Return a line for each file that a reader should open next: its path and what it shows."""
    files = {places.report: "the result in one page"}
    files[places.evaluation / "report.html"] = "viewer in three planes, and all metrics"
    files |= dict.fromkeys(enhanced_scans(places), "the enhanced scan, for any NIfTI viewer")
    width = max(len(str(path)) for path in files)
    return [f"  {path!s:<{width}}  {what}" for path, what in files.items()]
