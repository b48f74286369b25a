"""What a cluster would do, computed: epoch time, efficiency and cost for 1 to 256 GPUs and 450 to 100,000 subjects.

The model, every number of which is an option:

- Each GPU takes `slices_per_gpu` slices a step, whatever their number (the global batch grows with them), in
  `slice_s` seconds each. The default is computed: 0.57 TFLOP a slice of the published network at a tenth of an H100's
  990 TFLOP/s; measure yours with benchmarks/gpu_training.py.
- Gradients (23.5 million float32) go round a ring in each node and one between nodes, and hide behind the share
  `overlap` of a step that is backward pass; what is longer is waited for.
- Samples are read ahead at `read_samples_s` per process (measured, benchmarks/reader.txt). Where the set fits a node's
  disk it is fetched once, otherwise in every epoch, by all nodes together from one store.
- Saving, validation and slow nodes are not in it. Nor is learning: an epoch of few large steps teaches less.

`first to run out` is what a step waits for, or `steps` where an epoch has fewer than 100 of them. With `--check`, two
processes train here, and their step is compared with the model's, fed with what is measured here: the step of two lone
processes side by side, and the time of the exchange alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SUBJECTS = (450, 2_000, 10_000, 100_000)
LEAST_STEPS = 100
REPEATS = 3  # of the check


@dataclass(frozen=True)
class Cluster:
    """What the model is fed with."""

    slice_s: float = 0.571 / 99
    slices_per_gpu: int = 4
    gradient_bytes: float = 94e6
    gpus_per_node: int = 8
    link_bytes_s: float = 200e9  # between GPUs of a node, NVLink
    network_bytes_s: float = 25e9  # of a node, 200 Gbit/s
    latency_s: float = 30e-6  # of a ring's step
    overlap: float = 2 / 3
    sample_bytes: float = 2 * 221 * 200 * 2
    read_samples_s: float = 19_655.0
    store_bytes_s: float = 2e9  # of the store, for all nodes together
    disk_bytes: float = 1e12  # of a node, for the cache
    slices_per_subject: int = 179
    epochs: int = 60
    gpu_hour_cost: float = 2.5

    def exchange_s(self, gpus: int) -> float:
        """Give the seconds in which gradients go round."""
        inside, nodes = min(gpus, self.gpus_per_node), max(gpus // self.gpus_per_node, 1)
        rings = ((inside, self.link_bytes_s), (nodes, self.network_bytes_s))
        return sum(
            2 * (n - 1) / n * self.gradient_bytes / bytes_s + 2 * (n - 1) * self.latency_s for n, bytes_s in rings
        )

    def waits_s(self, gpus: int, subjects: int) -> dict[str, float]:
        """Give what a step takes by each resource, in seconds; they go on side by side, but for the first two."""
        compute = self.slices_per_gpu * self.slice_s
        step_bytes = gpus * self.slices_per_gpu * self.sample_bytes
        set_bytes = subjects * self.slices_per_subject * self.sample_bytes
        fetches = 1.0 if set_bytes > self.disk_bytes else max(gpus // self.gpus_per_node, 1) / self.epochs
        return {
            "compute": compute,
            "gradients": max(0.0, self.exchange_s(gpus) - self.overlap * compute),
            "reading": self.slices_per_gpu / self.read_samples_s,
            "store": fetches * step_bytes / self.store_bytes_s,
        }

    def step_s(self, gpus: int, subjects: int) -> float:
        """Give the seconds of a step."""
        waits = self.waits_s(gpus, subjects)
        return max(waits["compute"] + waits["gradients"], waits["reading"], waits["store"])

    def steps(self, gpus: int, subjects: int) -> int:
        """Give the steps of an epoch; the ragged tail is left out."""
        return subjects * self.slices_per_subject // (gpus * self.slices_per_gpu)

    def epoch_s(self, gpus: int, subjects: int) -> float:
        """Give the seconds of an epoch."""
        return self.steps(gpus, subjects) * self.step_s(gpus, subjects)

    def efficiency(self, gpus: int, subjects: int) -> float:
        """Give slices per second of each GPU over those of one GPU alone."""
        return self.step_s(1, subjects) / self.step_s(gpus, subjects)

    def first_to_run_out(self, gpus: int, subjects: int) -> str:
        """Name what ends the scaling."""
        if self.steps(gpus, subjects) < LEAST_STEPS:
            return "steps"
        waits = self.waits_s(gpus, subjects)
        slowest = max(waits["reading"], waits["store"])
        if slowest > waits["compute"] + waits["gradients"]:
            return max(("reading", "store"), key=lambda name: waits[name])
        return "gradients" if waits["gradients"] > 0.1 * waits["compute"] else "compute"


def main() -> None:
    """Print the tables, draw the plot, and check the model if it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for field in fields(Cluster):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--plot", type=Path, help="PNG file to draw")
    parser.add_argument("--check", action="store_true", help="train two processes here and compare")
    parser.add_argument("--exchange", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.exchange:
        print_exchange(arguments.exchange)
        return
    cluster = Cluster(**{field.name: getattr(arguments, field.name) for field in fields(Cluster)})
    print(f"{cluster}\n")
    for subjects in SUBJECTS:
        print_table(cluster, subjects)
    if arguments.plot:
        draw(cluster, arguments.plot)
    if arguments.check:
        check()


def print_table(cluster: Cluster, subjects: int) -> None:
    """Print a row per number of GPUs."""
    size = subjects * cluster.slices_per_subject * cluster.sample_bytes
    print(f"{subjects:,} subjects, {subjects * cluster.slices_per_subject:,} slices, {size / 1e9:,.0f} GB")
    print("GPUs   batch   steps/epoch   step (ms)   epoch    efficiency   all epochs      cost   first to run out")
    for gpus in GPUS:
        epoch = cluster.epoch_s(gpus, subjects)
        whole = cluster.epochs * epoch
        print(
            f"{gpus:>4} {gpus * cluster.slices_per_gpu:>7} {cluster.steps(gpus, subjects):>13,} "
            f"{1e3 * cluster.step_s(gpus, subjects):>11.1f} {duration(epoch):>8} "
            f"{cluster.efficiency(gpus, subjects):>11.0%} {duration(whole):>12} "
            f"{gpus * whole / 3600 * cluster.gpu_hour_cost:>9,.0f}   {cluster.first_to_run_out(gpus, subjects)}"
        )
    print()


def duration(seconds: float) -> str:
    """Spell a time."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def draw(cluster: Cluster, path: Path) -> None:
    """Draw epoch times and efficiencies."""
    from matplotlib.figure import Figure

    figure = Figure((9, 3.6), dpi=120, layout="constrained")
    times, shares = figure.subplots(1, 2)
    for subjects in SUBJECTS:
        epochs_min = [cluster.epoch_s(gpus, subjects) / 60 for gpus in GPUS]
        times.plot(GPUS, epochs_min, marker="o", label=f"{subjects:,} subjects")
        shares.plot(GPUS, [100 * cluster.efficiency(gpus, subjects) for gpus in GPUS], marker="o")
    times.set_yscale("log")
    times.set_title("minutes per epoch", loc="left")
    times.yaxis.set_major_formatter("{x:g}")
    shares.set_title("efficiency (%)", loc="left")
    shares.set_ylim(0, 105)
    for axes in (times, shares):
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, list(map(str, GPUS)))
        axes.set_xlabel("GPUs")
        axes.grid(alpha=0.3)
    times.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def check() -> None:
    """Train one, two lone and two joined processes here, and compare the joined ones' step with the model's."""
    from loop import make_shards

    from upfield.model.amir import Amir, AmirConfig

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_shards(root)
        gradient_bytes = 4 * sum(p.numel() for p in Amir(AmirConfig.preset("tiny")).parameters())
        exchange = measured_exchange_s(gradient_bytes)
        lone_s: list[float] = []
        joined_s: list[float] = []
        # In turn, as the machine is not equally quiet all the time.
        for repeat in range(REPEATS):
            started = {name: start(root, name, 1, batch=2) for name in (f"lone-{repeat}-0", f"lone-{repeat}-1")}
            lone_s += [finished_step_s(process, root / name) for name, process in started.items()]
            name = f"joined-{repeat}"
            joined_s.append(finished_step_s(start(root, name, 2, batch=4), root / name))
    compute, joined = statistics.median(lone_s), statistics.median(joined_s)
    expected = compute + max(0.0, exchange - Cluster.overlap * compute)
    print(f"two processes of `tiny`, 2 slices each, one thread each, {gradient_bytes / 1e6:.1f} MB of gradients")
    print(f"lone processes' step {1e3 * compute:.0f} ms, exchange alone {1e3 * exchange:.1f} ms")
    print(f"joined step: model {1e3 * expected:.0f} ms, measured {1e3 * joined:.0f} ms, ratio {joined / expected:.3f}")


def start(root: Path, name: str, processes: int, batch: int) -> "subprocess.Popen[bytes]":
    """Start a training of a few steps, one thread per process."""
    from upfield.distributed.launch import SCRIPT

    given = {
        "data.shards": root / "shards",
        "data.batch_size": batch,
        "model.preset": "tiny",
        "run.out": root / name,
        "run.max_steps": 16,
        "run.log_every": 1,
        "run.validate_every": 10**9,
        "run.checkpoint_every": 10**9,
        "run.trackers": "[]",
        "processes": processes,
    }
    flags = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finished_step_s(process: "subprocess.Popen[bytes]", run: Path) -> float:
    """Wait for a training and give the seconds of its median step, the first quarter left out."""
    assert process.wait() == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["slices_per_s"] for line in lines if line["event"] == "train"]
    batch = 2 if run.name.startswith("lone") else 4
    return batch / statistics.median(rates[len(rates) // 4 :])


def measured_exchange_s(num_bytes: int) -> float:
    """Measure an exchange of so many bytes between two processes here."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, __file__, "--exchange", str(num_bytes)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def print_exchange(num_bytes: int) -> None:
    """Sum as many bytes over this job's processes a few times, and let the first print the median time."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    values = torch.ones(num_bytes // 4)
    times_s: list[float] = []
    for _ in range(15):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(values)
        times_s.append(time.perf_counter() - begun)
    if dist.get_rank() == 0:
        print(statistics.median(times_s[3:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
