"""Compare sizes of the network for the preset `small`: what each one restores after equal training time, and its speed.

Each size is trained through `upfield train` on the same shard set for the same wall time, and then measured through
`upfield evaluate` on `--split`. A short run first measures how many steps fit into this time. Gains are over cubic
interpolation, the mean over subjects. The time to enhance is that of the network for a scan of 112 x 138 x 40 voxels of
1.6 x 1.6 x 5 mm, that is 179 slices of 221 x 200 pixels, in ONNX Runtime on `--threads` threads.

    python benchmarks/presets.py SHARDS --minutes 5 [--split val] [--only 16,20] [--training '--optim.lr 2e-3 ...']
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from upfield.common.cores import processor_name
from upfield.export.modelfile.graph import build_graph
from upfield.model.amir import Amir, AmirConfig
from upfield.sharding.shardset.manifest import read_manifest

BATCH_SIZE = 8
SLICES, PIXELS = 179, (221, 200)
PROBE_STEPS = 20
METRICS = ("psnr_slice_foreground", "ms_ssim_axial", "ssim_slice")
TRAINING = (
    *("--optim.lr", "2e-3", "--optim.schedule", "cosine", "--optim.warmup_steps", "40", "--optim.clip_norm", "1"),
    *("--optim.ema_decay", "0.99", "--data.batch_size", str(BATCH_SIZE)),
    *("--run.trackers", "[]", "--run.resume", "none"),
)


@dataclass(frozen=True)
class Size:
    """Sizes of the network that are compared; the heads are those of the published network."""

    dim: int
    num_blocks: tuple[int, int, int, int]
    num_refinement_blocks: int
    num_experts: int
    num_tokens: int = 8

    @property
    def flags(self) -> list[str]:
        """Arguments of `upfield train`."""
        return [part for name, value in vars(self).items() for part in (f"--model.{name}", json.dumps(value))]

    def network(self, context: int) -> Amir:
        """Build the network, without training it."""
        return Amir(replace(AmirConfig(in_channels=1 + 2 * context), **vars(self))).eval()


SIZES = {
    "8 (tiny)": Size(8, (0, 1, 1, 1), 1, 4),
    "12": Size(12, (0, 1, 2, 2), 1, 2),
    "16": Size(16, (0, 1, 2, 2), 1, 2),
    "16 with 4 experts": Size(16, (0, 1, 2, 2), 1, 4),
    "16 unrefined": Size(16, (0, 2, 2, 2), 0, 2),
    "16 at full resolution": Size(16, (1, 2, 2, 2), 2, 2),
    "16 (small)": Size(16, (0, 2, 2, 2), 2, 2),
    "20": Size(20, (0, 1, 1, 1), 1, 2),
}


def main() -> None:
    """Print the table."""
    arguments = parse_arguments()
    if arguments.shards is None:
        print("There is nothing to compare without a shard set.")
        return
    context = read_manifest(Path(arguments.shards)).context
    chosen = {name: SIZES[name] for name in (arguments.only.split(",") if arguments.only else SIZES)}
    print(f"{processor_name()}, {arguments.threads} threads, {arguments.minutes:g} minutes of training each")
    print(f"{'dim':<24} {'million':>8} {'s per':>6} {'slices/s':>9} {'gain over cubic':>25}")
    print(f"{'':<24} {'weights':>8} {'scan':>6} {'trained':>9} {'PSNR':>8} {'MS-SSIM':>8} {'SSIM':>8}")
    for name, size in chosen.items():
        network = size.network(context)
        weights = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        scan_s = seconds_per_scan(network, arguments.threads)
        with tempfile.TemporaryDirectory() as folder:
            rate, gains = train_and_measure(size, arguments, Path(folder))
        cells = "".join(f"{gain:>9.3f}" for gain in gains)
        print(f"{name:<24} {weights:>8.2f} {scan_s:>6.1f} {rate:>9.1f}{cells}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", help="shard set with a training split and the split to measure")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="split that is measured")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help=f"sizes to compare, separated by commas: {', '.join(SIZES)}")
    parser.add_argument("--training", type=shlex.split, default=[], help="further arguments of upfield train")
    return parser.parse_args()


def seconds_per_scan(network: Amir, threads: int) -> float:
    """Measure the seconds that the network takes for one scan, from its best of three batches of four slices."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = build_graph(network, half=False).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    low = np.random.default_rng(0).random((4, network.config.in_channels, *PIXELS), dtype=np.float32)
    seconds: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        session.run(None, {"low": low})
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) * SLICES / len(low)


def train_and_measure(size: Size, arguments: argparse.Namespace, folder: Path) -> tuple[float, list[float]]:
    """Train a size for the given time and measure it.

    Returns:
        The slices trained per second, and the mean gain in each of `METRICS`.
    """
    train(size, arguments, folder / "probe", PROBE_STEPS)
    probe = [json.loads(line) for line in (folder / "probe/metrics.jsonl").read_text().splitlines()]
    rate = [line["slices_per_s"] for line in probe if "slices_per_s" in line][-1]
    steps = int(rate * arguments.minutes * 60 / BATCH_SIZE)
    train(size, arguments, folder / "run", steps)
    measured = ("--shards", arguments.shards, "--split", arguments.split, "--perturb", "false")
    upfield("evaluate", folder / "run", *measured, "--out", folder / "report")
    metrics = json.loads((folder / "report/metrics.json").read_text())
    return rate, [metrics["model"][name]["mean"] - metrics["cubic"][name]["mean"] for name in METRICS]


def train(size: Size, arguments: argparse.Namespace, run: Path, steps: int) -> None:
    """Train a size for a number of steps."""
    length = ("--run.max_steps", steps, "--run.validate_every", steps, "--run.out", run, "--run.log_every", PROBE_STEPS)
    upfield("train", "--data.shards", arguments.shards, *TRAINING, *size.flags, *length, *arguments.training)


def upfield(*arguments: object) -> None:
    """Run a command of upfield, and stop with its output if it fails."""
    command = [sys.executable, "-m", "upfield.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
