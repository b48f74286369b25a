"""Measure training on a GPU: slices per second, share of peak performance, data wait and memory, for two recipes.

The benchmark makes phantoms and shards them (2.5D for `full450`). Then `upfield train` runs each recipe for a few
steps, eager and compiled, each in its own process. The numbers come from the log of the run; the first half of the
steps is warm-up and does not count. The share of peak performance is three times the floating-point operations of a
forward pass, divided by the time and by `--peak_tflops` (default 990, the dense bf16 performance of an H100).

With `--minutes`, the benchmark then trains the `report` recipe for that long and prints its validation curve. On a CPU,
use `--preset tiny`, which only shows that the benchmark runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from upfield.distributed.launch import SCRIPT
from upfield.model.amir import Amir, AmirConfig

RECIPES = SCRIPT.parent / "recipes"
CONTEXT = {"report": 0, "full450": 2}


def main() -> None:
    """Print a row for each recipe, eager and compiled, and then the validation curve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, help="global batch size; default: the recipe's")
    parser.add_argument("--preset", help="network preset; default: the recipe's")
    parser.add_argument("--peak_tflops", type=float, default=990.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and arguments.preset is None:
        print("This benchmark needs a GPU. To run it on a CPU as a check, add --preset tiny --batch 2 --steps 10.")
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for context in set(CONTEXT.values()):
            make_shards(root, context)
        print(f"{device}, torch {torch.__version__}, {arguments.steps} steps")
        print("recipe             slices/s   share of peak   data wait   memory (GB)")
        for recipe, context in CONTEXT.items():
            for compiled in (False, True):
                print_row(arguments, root, recipe, context, compiled)
        if arguments.minutes:
            print_curve(arguments, root)


def make_shards(root: Path, context: int) -> None:
    """Write shards with `context` neighbouring slices; the first call also writes the phantom cohort."""
    upfield = [sys.executable, "-m", "upfield.cli.main"]
    cohort = root / "cohort"
    if not cohort.exists():
        subprocess.run([*upfield, "phantom", str(cohort), "--subjects", "8"], check=True, capture_output=True)
    config = yaml.safe_load((cohort / "cohorts.yaml").read_text(encoding="utf-8")) | {"context": context}
    file = cohort / f"cohorts-{context}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [*upfield, "shard", "--config", str(file), "--out", str(root / f"shards-{context}")]
    subprocess.run(command, check=True, capture_output=True)


def train(arguments: argparse.Namespace, out: Path, recipe: str, *options: str) -> list[dict]:
    """Train and return the lines of the log."""
    command = [sys.executable, str(SCRIPT), "--config", str(RECIPES / f"{recipe}.yaml"), "--run.out", str(out)]
    command += ["--data.shards", str(out.parent / f"shards-{CONTEXT[recipe]}"), *options]
    if arguments.batch:
        command += ["--data.batch_size", str(arguments.batch)]
    if arguments.preset:
        command += ["--model.preset", arguments.preset]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{recipe}: {done.stderr.strip().splitlines()[-1]}")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def print_row(arguments: argparse.Namespace, root: Path, recipe: str, context: int, compiled: bool) -> None:
    """Train for a few steps and print the median of the second half's log lines."""
    steps = ("--run.max_steps", str(arguments.steps), "--run.log_every", "5", "--run.validate_every", "1000000000")
    name = f"{recipe}{', compiled' if compiled else ''}"
    lines = train(arguments, root / name.replace(", ", "-"), recipe, *steps, "--run.compile", str(compiled).lower())
    kept = [line for line in lines if line["event"] == "train"]
    kept = kept[len(kept) // 2 :]
    rate, wait = (sorted(line[key] for line in kept)[len(kept) // 2] for key in ("slices_per_s", "data_wait"))
    preset = (
        arguments.preset or yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))["model"]["preset"]
    )
    share = 3 * forward_operations(preset, context) * rate / (arguments.peak_tflops * 1e12)
    memory_gb = max(line["memory_gb"] for line in kept)
    print(f"{name:<18} {rate:>8.1f} {share:>15.2%} {wait:>11.2%} {memory_gb:>13.1f}", flush=True)


def forward_operations(preset: str, context: int) -> int:
    """Count the floating-point operations of a forward pass on one whole slice, without computing it."""
    with FakeTensorMode():
        network = Amir(replace(AmirConfig.preset(preset), in_channels=1 + 2 * context)).eval()
        slices = torch.empty(1, 1 + 2 * context, 221, 200)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(slices)
    return counter.get_total_flops()


def print_curve(arguments: argparse.Namespace, root: Path) -> None:
    """Train the `report` recipe for `--minutes` and print its validation curve."""
    text = (root / "report/metrics.jsonl").read_text(encoding="utf-8")
    rate_lines = [line for line in map(json.loads, text.splitlines()) if line["event"] == "train"]
    per_step_s = (arguments.batch or 4) / rate_lines[-1]["slices_per_s"]
    steps = max(1, int(arguments.minutes * 60 / per_step_s))
    begun = time.monotonic()
    options = (
        "--run.max_steps",
        str(steps),
        "--run.epochs",
        "1000000",
        "--run.validate_every",
        str(max(1, steps // 8)),
    )
    print(f"\nreport recipe on phantoms, {steps} steps\n  step   psnr_slice   cubic   ssim_slice   cubic")
    for line in train(arguments, root / "curve", "report", *options):
        if line["event"] == "validation":
            figures = [line[key] for key in ("psnr_slice", "cubic_psnr_slice", "ssim_slice", "cubic_ssim_slice")]
            print("{:>6} {:>12.2f} {:>7.2f} {:>12.4f} {:>7.4f}".format(line["step"], *figures))
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
