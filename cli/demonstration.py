"""The demonstration: every stage on phantoms, each through its own command, and one self-contained report."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upfield.cli.accelerate_launcher import launch_command, run_launcher
from upfield.cli.configuration import DemoConfig
from upfield.common import html_page
from upfield.common.errors import InputError, RunError
from upfield.common.files import check_writable
from upfield.distributed.launch import SCRIPT
from upfield.evaluation.evaluate import main as evaluate_command
from upfield.evaluation.reports.figures import curves_png
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
from upfield.sharding.verify import main as verify_command

MARK, MARK_TEXT = "demo.json", '{"made_by": "upfield demo"}\n'
RECIPE = "tiny_cpu.yaml"
PHANTOM_NOTE = (
    "All subjects are phantoms made from one template. Their figures show that every stage works, but they say nothing "
    "about patients."
)


@dataclass(frozen=True)
class Places:
    """The files and folders of the demonstration."""

    out: Path
    """Folder that holds all of them."""

    @property
    def cohort(self) -> Path:
        """NIfTI files and cohorts.yaml."""
        return self.out / "cohort"

    @property
    def shards(self) -> Path:
        """The shard set."""
        return self.out / "shards"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.out / "run"

    @property
    def evaluation(self) -> Path:
        """Metrics and their report."""
        return self.out / "evaluation"

    @property
    def model(self) -> Path:
        """The model file."""
        return self.out / "model.onnx"

    @property
    def enhanced(self) -> Path:
        """Enhanced scans."""
        return self.out / "enhanced"


def run_demonstration(config: DemoConfig) -> None:
    """Run every stage, write the report, and print the metrics and the time that each stage took."""
    places = Places(config.out)
    prepare_folder(config.out)
    times_s: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], None]) -> None:
        print(f"== {stage}", flush=True)
        started = time.monotonic()
        work()
        times_s[stage] = time.monotonic() - started

    timed("cohort", lambda: make_cohort(config, places))
    timed("shards", lambda: make_shards(places))
    timed("training", lambda: train(config, places))
    timed("evaluation", lambda: evaluate(places))
    timed("export", lambda: export(places))
    timed("enhance", lambda: enhance(places))
    write_demo_report(places, times_s)
    print("\n" + final_table(places, times_s))


def prepare_folder(out: Path) -> None:
    """Create the folder; delete an earlier demonstration in it.

    Raises:
        InputError: the folder holds other files, or cannot be written.
    """
    check_writable(out, "--out")
    if out.exists():
        if any(out.iterdir()) and not is_demonstration(out):
            raise InputError(f"{out} holds files that upfield demo did not write. Choose another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text(MARK_TEXT, encoding="utf-8")


def is_demonstration(out: Path) -> bool:
    """Return whether a folder holds an earlier demonstration."""
    mark = out / MARK
    return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == MARK_TEXT


def make_cohort(config: DemoConfig, places: Places) -> None:
    """Write the phantom cohort."""
    run_stage(phantom_command, places.cohort, "--subjects", config.subjects, "--seed", config.seed)


def make_shards(places: Places) -> None:
    """Build the shard set, verify it, and draw pairs from it."""
    run_stage(shard_command, "--config", places.cohort / "cohorts.yaml", "--out", places.shards)
    run_stage(verify_command, places.shards)
    run_stage(preview_command, places.shards, "--out", places.out / "pairs.png")


def train(config: DemoConfig, places: Places) -> None:
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


def precision() -> str:
    """Return `bf16` if the hardware supports it, otherwise `no`: emulated bf16 is slower than float32."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace") if cpu.is_file() else ""
    return "bf16" if torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags else "no"


def evaluate(places: Places) -> None:
    """Measure the best model on the held-out subject."""
    run_stage(evaluate_command, places.run, "--shards", places.shards, "--split", "test", "--out", places.evaluation)


def export(places: Places) -> None:
    """Write the model file."""
    metrics = places.evaluation / "metrics.json"
    run_stage(export_command, places.run, "--out", places.model, "--evaluation", metrics)


def enhance(places: Places) -> None:
    """Enhance the held-out subject's low-field scan with the model file alone."""
    subject = held_out_subject(places)
    slices = sorted((places.cohort / "real" / "low").glob(f"{subject}_slice_*.nii.gz"))
    scan = places.out / "scan" / f"{subject}.nii.gz"
    scan.parent.mkdir()
    # The cohort holds one file per slice, but a scanner writes one file per scan.
    write_volume(read_stack(slices), scan)
    run_stage(enhance_command, places.model, scan, "--out", places.enhanced, "--contrast", "T1w")


def held_out_subject(places: Places) -> str:
    """Return the id of the first test subject."""
    return read_manifest(places.shards).subjects("test")[0]["subject"]


def run_stage(main: Callable[[list[str]], int], *arguments: object) -> None:
    """Run the command of a stage as a user would.

    Raises:
        RunError: the command failed and has printed its own error.
    """
    code = main([str(argument) for argument in arguments])
    if code:
        raise RunError(f"This stage ended with exit code {code}. Its error is printed above.")


def write_demo_report(places: Places, times_s: dict[str, float]) -> None:
    """Write `report.html`: metrics, training curves, slices, times, configuration, and links to all files."""
    metrics = read_metrics(places)
    log = [json.loads(line) for line in (places.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    files = {str(p.relative_to(places.out)): str(p.relative_to(places.out)) for p in linked_files(places)}
    configuration = (places.run / "config.yaml").read_text(encoding="utf-8")
    cohorts = (places.cohort / "cohorts.yaml").read_text(encoding="utf-8")
    sections = [
        html_page.paragraph(PHANTOM_NOTE),
        metrics_table(metrics, "Held-out subject: cubic interpolation against the model"),
        html_page.figure(curves_png(log), "Loss and validation PSNR over steps", heading="Training"),
        html_page.figure(
            (places.evaluation / SLICES_PNG).read_bytes(), "Slices before and after", heading="Low, restored, high"
        ),
        html_page.figure((places.out / "pairs.png").read_bytes(), "Pairs of the shard set", heading="Training pairs"),
        html_page.table(["stage", "seconds"], [[stage, f"{s:.0f}"] for stage, s in times_s.items()], "Time"),
        html_page.code_block("Training configuration", configuration, "Configuration"),
        html_page.code_block("Cohorts", cohorts),
        html_page.link_list(files, "Files"),
    ]
    html_page.write_report(places.out / "report.html", "upfield: every stage on phantoms", sections)


def linked_files(places: Places) -> list[Path]:
    """Return the files that the report links to."""
    enhanced = sorted(places.enhanced.iterdir())
    scan = sorted((places.out / "scan").iterdir())
    pages = [places.evaluation / "report.html", places.evaluation / "metrics.json", places.evaluation / "slices.csv"]
    return [*enhanced, *scan, places.model, *pages, places.shards / "manifest.json", places.run / "metrics.jsonl"]


def read_metrics(places: Places) -> dict[str, Any]:
    """Read the metrics of the evaluation."""
    return json.loads((places.evaluation / "metrics.json").read_text(encoding="utf-8"))


def final_table(places: Places, times_s: dict[str, float]) -> str:
    """Return the closing text of the demonstration: metrics, times, and the path of the report."""
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times_s.items())
    return "\n".join(
        [
            f"Held-out phantom subject {held_out_subject(places)}",
            metrics_text(read_metrics(places)),
            PHANTOM_NOTE,
            f"Time: {sum(times_s.values()):.0f} s ({took})",
            f"Report: {places.out / 'report.html'}",
        ]
    )
