"""Measure what the training loop costs besides the network: slices per second of `upfield train` and of a bare step.

A bare step is the forward pass, loss, backward pass and optimizer step on one batch in memory. The loop is `upfield
train` itself: it reads shards of phantoms made here, draws noise, measures, logs, and lets the ranks agree at every
step. Both run in this process, in turn, on the same batches. The speed is that of the median step, and the best of all
repeats counts. `data wait` is the share of the time of all steps that is spent waiting for data, and the worst of all
repeats counts. The first step of each run is warm-up and does not count.

`shared` is the loop's speed while another process keeps one core busy, and `kept` is its share of the quiet speed. The
same follows for whole runs of `upfield evaluate` and `upfield enhance`, which take turns. With OMP_NUM_THREADS in the
environment, no command adapts to the other process.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from acceptance.measuring import synchronise

from upfield.distributed.configuration import DataConfig, ModelConfig, RunConfig, TrainConfig
from upfield.distributed.gating_noise import draw_gating_noise
from upfield.distributed.loop import fit
from upfield.distributed.samples.reader import read_batch
from upfield.distributed.training_run import close_run, open_run
from upfield.export.to_onnx import main as export
from upfield.model.losses import restoration_loss
from upfield.sharding.phantom import main as phantom
from upfield.sharding.shard import main as shard


def main() -> None:
    """Print the ratio for each preset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["tiny", "official"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="bf16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_shards(root)
        print(f"batch {arguments.batch}, {arguments.steps} steps of whole slices, {arguments.precision}")
        print("preset       bare (slices/s)   loop (slices/s)   ratio   data wait   shared (slices/s)   kept")
        threads = torch.get_num_threads()
        for preset in arguments.presets:
            bare, loop, wait, shared = 0.0, 0.0, 0.0, 0.0
            for number in range(arguments.repeats):
                config = training(arguments, root, preset, root / f"{preset}-{number}")
                bare = max(bare, bare_rate(config, arguments.steps))
                rate, waited = loop_rate(config, "loop")
                loop, wait = max(loop, rate), max(wait, waited)
                with one_core_busy():
                    shared = max(shared, loop_rate(config, "shared")[0])
                torch.set_num_threads(threads)  # Beside the busy process, training has chosen fewer.
            quiet = f"{bare:>15.2f} {loop:>17.2f} {loop / bare:>7.3f} {wait:>11.2%}"
            print(f"{preset:<12} {quiet} {shared:>19.2f} {shared / loop:>6.0%}", flush=True)
        print("\ncommand                 quiet (s)   shared (s)   kept")
        for preset in arguments.presets:
            print_commands(preset, root, arguments.repeats)


def print_commands(preset: str, root: Path, repeats: int) -> None:
    """Print the best times of `upfield evaluate` and `upfield enhance` with a run of this preset."""
    run, shards, model = root / f"{preset}-0/loop", root / "shards", root / f"{preset}.onnx"
    quietly(export, [str(run), "--out", str(model)])
    scan = next((root / "cohort").rglob("*T1.nii.gz"))
    for verb, *given in (["evaluate", run, "--shards", shards, "--out"], ["enhance", model, scan, "--out"]):
        quiet_s, shared_s = float("inf"), float("inf")
        for number in range(repeats):
            command = [sys.executable, "-m", "upfield.cli.main", str(verb), *map(str, given)]
            quiet_s = min(quiet_s, seconds_of([*command, str(root / f"{preset}-{number}/{verb}-quiet")]))
            with one_core_busy():
                shared_s = min(shared_s, seconds_of([*command, str(root / f"{preset}-{number}/{verb}-shared")]))
        print(f"{verb:<10} {preset:<10} {quiet_s:>11.2f} {shared_s:>12.2f} {quiet_s / shared_s:>6.0%}", flush=True)


def seconds_of(command: list[str]) -> float:
    """Return the time that a command takes, from its start to its end."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


@contextlib.contextmanager
def one_core_busy() -> Iterator[None]:
    """Keep one core busy with another process, as another user's program would."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def make_shards(root: Path, size: tuple[int, int] = (221, 200)) -> None:
    """Write phantoms and shards of their 16 middle slices of `size`; few, because a run ends with a validation."""
    quietly(phantom, [str(root / "cohort"), "--subjects", "4"])
    file = root / "cohort/cohorts.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["geometry"] = {"low_shape": [10, 138, 40], "high_shape": [16, *size]}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    quietly(shard, ["--config", str(file), "--out", str(root / "shards")])


def quietly(command: object, arguments: list[str]) -> None:
    """Run a command, and show its output only if it fails."""
    assert callable(command)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = command(arguments)
    assert code == 0, said.getvalue()


def training(arguments: argparse.Namespace, root: Path, preset: str, out: Path) -> TrainConfig:
    """Return the configuration of a run with `--steps` steps after one warm-up step."""
    steps = arguments.steps + 1
    return TrainConfig(
        data=DataConfig(shards=root / "shards", batch_size=arguments.batch),
        model=ModelConfig(preset=preset),
        run=RunConfig(
            out=out,
            max_steps=steps,
            precision=arguments.precision,
            log_every=1,
            validate_every=10**9,
            checkpoint_every=10**9,
            trackers=[],
        ),
    )


def bare_rate(config: TrainConfig, steps: int) -> float:
    """Return the slices per second of the median bare step, on the same batches as the loop."""
    with contextlib.redirect_stderr(io.StringIO()):
        run = open_run(replace(config, run=replace(config.run, out=config.run.out and config.run.out / "bare")))
    device = run.accelerator.device
    batches = [read_batch(run.batches.split, run.batches.samples_at(step)) for step in range(steps + 1)]
    size = (batches[0].low.shape[-2], batches[0].low.shape[-1])
    noise = draw_gating_noise(run.learner.network.config, size, (0, 0), batches[0].samples, device)
    times_s: list[float] = []
    for batch in batches:
        begun = time.perf_counter()
        low, high = (tensor.to(device).float() for tensor in (batch.low, batch.high))
        restored, load_loss = run.wrapped(low, noise)
        run.accelerator.backward(restoration_loss(restored, high, load_loss, config.loss)[0])
        run.learner.optimizer.step()
        run.learner.optimizer.zero_grad(set_to_none=True)
        synchronise(device.type)
        times_s.append(time.perf_counter() - begun)
    if run.lock:
        run.lock.close()
    close_run(run)
    return len(batches[0].samples) / statistics.median(times_s[1:])


def loop_rate(config: TrainConfig, name: str) -> tuple[float, float]:
    """Return the slices per second of the loop's median step, and the share of its time spent waiting for data."""
    with contextlib.redirect_stderr(io.StringIO()):
        fit(replace(config, run=replace(config.run, out=config.run.out / name)))
    text = (config.run.out / name / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if line["event"] == "train"][1:]
    times = [1 / line["slices_per_s"] for line in lines]
    waited = sum(line["data_wait"] * time for line, time in zip(lines, times, strict=True))
    return 1 / statistics.median(times), waited / sum(times)


if __name__ == "__main__":
    main()
