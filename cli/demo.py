"""`upfield demo`: all of it on the phantom, each stage through its own command, to one self-contained report."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfield.cli.configuration import DemoConfig
from upfield.common.command import Command, execute
from upfield.common.errors import InputError, RunError

MARK, MARK_TEXT = "demo.json", '{"made_by": "upfield demo"}\n'
RECIPE = "tiny_cpu.yaml"
HONESTY = (
    "The subjects are phantoms made from one template; their figures show that the road works and say nothing about "
    "patients."
)


@dataclass(frozen=True)
class Places:
    """Where the demonstration leaves what it makes."""

    out: Path

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


def demo(config: DemoConfig) -> None:
    """Run every stage, write the report, and print the table and the time that each stage took."""
    places = Places(config.out)
    claim(config.out)
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


def claim(out: Path) -> None:
    """Make the folder, replacing an earlier demonstration.

    Raises:
        InputError: the folder holds something else.
    """
    if out.exists():
        if any(out.iterdir()) and not is_ours(out):
            raise InputError(
                f"{out}: expected a new folder or an earlier demonstration, found other files; choose --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).write_text(MARK_TEXT, encoding="utf-8")


def is_ours(out: Path) -> bool:
    """Tell whether a folder is an earlier demonstration."""
    mark = out / MARK
    return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == MARK_TEXT


def make_cohort(config: DemoConfig, places: Places) -> None:
    """Write the phantom cohort."""
    from upfield.sharding import phantom

    call(phantom.main, places.cohort, "--subjects", config.subjects, "--seed", config.seed)


def make_shards(places: Places) -> None:
    """Build the shard set, and check and draw it."""
    from upfield.sharding import preview, shard, verify

    call(shard.main, "--config", places.cohort / "cohorts.yaml", "--out", places.shards)
    call(verify.main, places.shards)
    call(preview.main, places.shards, "--out", places.out / "pairs.png")


def train(config: DemoConfig, places: Places) -> None:
    """Train the tiny preset in processes of its own, as on a cluster: through `accelerate launch`."""
    from upfield.distributed.launch import SCRIPT, launch_command, run_launcher

    recipe = SCRIPT.parent / "recipes" / RECIPE
    arguments = ["--config", recipe, "--data.shards", places.shards, "--run.out", places.run, "--run.seed", config.seed]
    arguments += ["--run.precision", precision()]
    if config.max_steps is not None:
        arguments += ["--run.max_steps", config.max_steps]
    command = [*launch_command(processes=1), str(SCRIPT), *map(str, arguments)]
    code, stopped = run_launcher(command, dict(os.environ))
    if stopped:
        raise RunError("training: stopped by a signal; the same command starts the demonstration anew")
    if code:
        raise RunError(f"training: expected exit code 0, found {code}; its own message stands above")


def precision() -> str:
    """Give bf16 where the machine computes in it, otherwise full precision: emulation would be slower than either."""
    import torch

    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text(encoding="utf-8", errors="replace") if cpu.is_file() else ""
    return "bf16" if torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags else "no"


def evaluate(places: Places) -> None:
    """Measure the best model on the held-out subject."""
    from upfield.evaluation import evaluate as stage

    call(stage.main, places.run, "--shards", places.shards, "--split", "test", "--out", places.evaluation)


def export(places: Places) -> None:
    """Write the model file."""
    from upfield.export import to_onnx

    metrics = places.evaluation / "metrics.json"
    call(to_onnx.main, places.run, "--out", places.model, "--evaluation", metrics)


def enhance(places: Places) -> None:
    """Enhance the held-out subject's low-field scan with the model file alone."""
    from upfield.export import enhance as stage
    from upfield.imaging.nifti_writer import write_volume
    from upfield.imaging.volume import read_stack

    subject = held_out_subject(places)
    slices = sorted((places.cohort / "real" / "low").glob(f"{subject}_slice_*.nii.gz"))
    scan = places.out / "scan" / f"{subject}.nii.gz"
    scan.parent.mkdir()
    # The cohort holds one file per slice; a scanner gives one per scan.
    write_volume(read_stack(slices), scan)
    call(stage.main, places.model, scan, "--out", places.enhanced)


def held_out_subject(places: Places) -> str:
    """Give the id of the first test subject."""
    from upfield.sharding.shardset.manifest import read_manifest

    return read_manifest(places.shards).subjects("test")[0]["subject"]


def call(main: Callable[[list[str]], int], *arguments: object) -> None:
    """Run a stage's command as a user would.

    Raises:
        RunError: it failed; it has said why.
    """
    code = main([str(argument) for argument in arguments])
    if code:
        raise RunError(f"expected exit code 0 from the stage, found {code}; its own message stands above")


def write_demo_report(places: Places, times_s: dict[str, float]) -> None:
    """Write demo/report.html: configuration, curves, table, slices, files."""
    from upfield.common import html_page as report
    from upfield.evaluation.reports import figures
    from upfield.evaluation.reports.metrics_table import metrics_table
    from upfield.evaluation.reports.model_report import SLICES_PNG

    metrics = read_metrics(places)
    log = [json.loads(line) for line in (places.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    files = {str(p.relative_to(places.out)): str(p.relative_to(places.out)) for p in linked_files(places)}
    configuration = (places.run / "config.yaml").read_text(encoding="utf-8")
    cohorts = (places.cohort / "cohorts.yaml").read_text(encoding="utf-8")
    sections = [
        report.paragraph(HONESTY),
        metrics_table(metrics, "Held-out subject: cubic interpolation against the model"),
        report.figure(figures.curves_png(log), "Loss and validation PSNR over steps", heading="Training"),
        report.figure(
            (places.evaluation / SLICES_PNG).read_bytes(), "Slices before and after", heading="Low, restored, high"
        ),
        report.figure((places.out / "pairs.png").read_bytes(), "Pairs of the shard set", heading="What it trained on"),
        report.table(["stage", "seconds"], [[stage, f"{s:.0f}"] for stage, s in times_s.items()], "Time"),
        report.code_block("Training configuration", configuration, "Configuration"),
        report.code_block("Cohorts", cohorts),
        report.link_list(files, "Files"),
    ]
    report.write_report(places.out / "report.html", "upfield: the whole road on phantoms", sections)


def linked_files(places: Places) -> list[Path]:
    """Give the files that the report links to."""
    enhanced = sorted(places.enhanced.iterdir())
    scan = sorted((places.out / "scan").iterdir())
    pages = [places.evaluation / "report.html", places.evaluation / "metrics.json", places.evaluation / "slices.csv"]
    return [*enhanced, *scan, places.model, *pages, places.shards / "manifest.json", places.run / "metrics.jsonl"]


def read_metrics(places: Places) -> dict[str, Any]:
    """Read what evaluation measured."""
    return json.loads((places.evaluation / "metrics.json").read_text(encoding="utf-8"))


def final_table(places: Places, times_s: dict[str, float]) -> str:
    """Give the table that ends the demonstration."""
    from upfield.evaluation.reports.metrics_text import metrics_text

    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times_s.items())
    return "\n".join(
        [
            f"Held-out phantom subject {held_out_subject(places)}",
            metrics_text(read_metrics(places)),
            HONESTY,
            f"Time: {sum(times_s.values()):.0f} s ({took})",
            f"Report: {places.out / 'report.html'}",
        ]
    )


COMMAND = Command("demo", DemoConfig, demo)


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
