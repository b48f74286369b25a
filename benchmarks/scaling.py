"""Estimate training on a cluster: epoch time, efficiency and cost for 1 to 256 GPUs and 450 to 100,000 subjects.

Nothing is run on a cluster: a model computes all numbers. Each of its parameters is an option.

- Each GPU takes `slices_per_gpu` slices per step, however many GPUs there are, so the global batch grows with them. A
  slice takes `slice_s` seconds. Nobody has measured the default. It is a lower limit: the operators of a training step
  of the published network in bf16 read and write 30 GB per slice (counted), and an H100 moves about 3.0 TB/s. The
  arithmetic, 0.57 TFLOP per slice, would take less than a millisecond. Measure your own value with `make gpu`.
- All GPUs wait for the slowest one. The step time of a GPU is assumed to be normally distributed, with a standard
  deviation of `spread` times its mean. The step time of n GPUs is the expected maximum of n such times.
- Gradients (23.5 million float32 values) are exchanged in one ring per node and one ring between nodes. The exchange
  overlaps with the backward pass, which is the share `overlap` of a step. GPUs wait for the rest of the exchange.
- Each process reads samples ahead, `read_samples_s` per second (measured, benchmarks/tables/reader.txt).
- The samples of each global batch come in equal numbers from `groups` groups of shards (`--data.groups` of `upfield
  train`). By default, the number is chosen as `upfield train` chooses it for a remote set: the largest power of two
  that divides the global batch, 16 at most. A node downloads the shards of the groups that its share of the batch
  touches. If the number of nodes divides `groups`, the nodes together download the set once, and in addition the shards
  that are cut between two nodes. If there are more nodes than groups, several nodes download the same group. With
  `groups` 1, each node downloads every shard.
- If a node's part of the set fits into `cache_bytes` (`--data.cache_bytes`, by default 50 GB), it is downloaded in the
  first epoch only, otherwise in every epoch. With `--fetch samples`, nothing is cached: the nodes download exactly
  their own samples in every epoch, with one request per sample.
- All nodes share one store with `store_bytes_s`, which answers `store_requests_s` requests per second (S3 documents
  5,500 for each prefix), and each node has its own network link. With `cache_bytes` 0, the store is a file system that
  all nodes see, and each process reads only its own samples. In all cases downloading runs beside the steps, so an
  epoch takes the longer of the two times.
- Start-up, checkpoints, validation and node failures are not modelled. Neither is learning: an epoch with few, large
  steps trains the network less.

`waits for` names the largest loss of time besides computing over the whole training, if it is above 5%. If an epoch has
fewer than 100 steps, it is always `steps`. `requests` are requests per second of the store. The last table compares the
ways to read: it names what runs out first without groups, with groups, and with single samples.

With `--check`, two processes train here, which takes some minutes, and their step time is compared with the model's.
The model then uses values measured here: the step times of two separate processes that run side by side, and the time
of the exchange alone. The check runs once with whole slices, and once with slices so small that the exchange matters.
It cannot check that GPUs exchange gradients during the backward pass, because here every core is busy computing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SUBJECTS = (450, 2_000, 10_000, 100_000)
LEAST_STEPS = 100
WORTH_NAMING = 0.05
MAY_BE_ZERO = ("spread", "latency_s", "overlap", "cache_bytes", "groups")
SUMMARY_GPUS = (8, 64, 256)
SUMMARY_SUBJECTS = (450, 10_000, 100_000)
WAYS = {"groups 1": {"groups": 1}, "groups": {}, "groups 32": {"groups": 32}, "samples": {"fetch": "samples"}}
MOST_GROUPS = 16  # the default of --data.window_shards
CHECK_REPEATS = 3


@dataclass(frozen=True)
class Cluster:
    """Parameters of the model."""

    slice_s: float = 30.3e9 / 3.0e12
    slices_per_gpu: int = 4
    spread: float = 0.02  # standard deviation, relative to the step
    gradient_bytes: float = 94e6
    gpus_per_node: int = 8
    link_bytes_s: float = 200e9  # between the GPUs of a node: NVLink
    network_bytes_s: float = 25e9  # of one node: 200 Gbit/s
    latency_s: float = 30e-6  # of one step of a ring
    overlap: float = 2 / 3
    sample_bytes: float = 2 * 221 * 200 * 2
    read_samples_s: float = 42_634.0
    shard_bytes: float = 512 * 2 * 221 * 200 * 2
    store_bytes_s: float = 2e9  # shared by all nodes
    store_requests_s: float = 5_500.0
    cache_bytes: float = 1e12  # per node
    groups: int = 0  # 0: chosen as upfield does
    fetch: str = "shards"
    slices_per_subject: int = 179
    epochs: int = 60
    gpu_hour_cost: float = 2.5

    def __post_init__(self) -> None:
        """Check that each parameter has a possible value."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                continue
            if not (value > 0 or (value == 0 and field.name in MAY_BE_ZERO)):
                raise ValueError(f"--{field.name}: expected a positive number, found {value}.")
        if self.fetch not in ("shards", "samples"):
            raise ValueError(f"--fetch: expected shards or samples, found {self.fetch}.")
        if self.overlap > 1:
            raise ValueError(f"--overlap: expected a share of a step, 0 to 1, found {self.overlap}.")

    def nodes(self, gpus: int) -> int:
        """Return the number of nodes for this number of GPUs."""
        return -(-gpus // self.gpus_per_node)

    def exchange_s(self, gpus: int) -> float:
        """Compute the seconds that one exchange of the gradients takes."""
        rings = ((min(gpus, self.gpus_per_node), self.link_bytes_s), (self.nodes(gpus), self.network_bytes_s))
        return sum(
            2 * (n - 1) / n * self.gradient_bytes / bytes_s + 2 * (n - 1) * self.latency_s for n, bytes_s in rings
        )

    def step_parts_s(self, gpus: int) -> dict[str, float]:
        """Compute the parts of a step in seconds; fetching is not one of them."""
        compute = self.slices_per_gpu * self.slice_s
        slowest = compute * self.spread * longest_of(gpus)
        gradients = max(0.0, self.exchange_s(gpus) - self.overlap * compute)
        computed = compute + slowest + gradients
        reading = max(0.0, self.slices_per_gpu / self.read_samples_s - computed)
        return {"compute": compute, "the slowest": slowest, "gradients": gradients, "reading": reading}

    def steps(self, gpus: int, subjects: int) -> int:
        """Compute the number of full steps in an epoch."""
        return subjects * self.slices_per_subject // (gpus * self.slices_per_gpu)

    def set_bytes(self, subjects: int) -> float:
        """Compute the size of a set in bytes."""
        return subjects * self.slices_per_subject * self.sample_bytes

    def num_groups(self, gpus: int) -> int:
        """Return the number of groups."""
        batch = gpus * self.slices_per_gpu
        # The lowest bit of a number is the largest power of two that divides it.
        return self.groups or min(MOST_GROUPS, batch & -batch)

    def downloaded_bytes(self, gpus: int, subjects: int) -> float:
        """Compute the bytes that all nodes together download in an epoch in which nothing is cached."""
        size, nodes, groups = self.set_bytes(subjects), self.nodes(gpus), self.num_groups(gpus)
        if self.fetch == "samples" or not self.cache_bytes:
            return size
        # Node n needs the groups that lie in its share of the batch, n / nodes to (n + 1) / nodes.
        touched = sum(-(-(node + 1) * groups // nodes) - node * groups // nodes for node in range(nodes))
        cut_shards = (min(nodes, groups) - 1) * max(1.0, nodes / groups)
        return min(nodes * size, touched / groups * size + cut_shards * self.shard_bytes)

    def fetch_s(self, gpus: int, subjects: int) -> float:
        """Compute the seconds that the nodes take to download what they read in one epoch, if nothing is cached."""
        return max(self.fetch_parts_s(gpus, subjects).values())

    def fetch_parts_s(self, gpus: int, subjects: int) -> dict[str, float]:
        """Compute the seconds that each limit of the store and the network would allow for these downloads."""
        downloaded = self.downloaded_bytes(gpus, subjects)
        samples = subjects * self.slices_per_subject
        requests = samples if self.fetch == "samples" else downloaded / self.shard_bytes
        return {
            "store": downloaded / self.store_bytes_s,
            "network": downloaded / self.nodes(gpus) / self.network_bytes_s,
            "requests": requests / self.store_requests_s if self.cache_bytes else 0.0,
        }

    def keeps_its_part(self, gpus: int, subjects: int) -> bool:
        """Return whether a node's cache holds all that the node downloads in an epoch."""
        part = self.downloaded_bytes(gpus, subjects) / self.nodes(gpus)
        return self.fetch == "shards" and part <= self.cache_bytes

    def epochs_s(self, gpus: int, subjects: int) -> tuple[float, float]:
        """Compute the seconds of the first epoch and of each later epoch."""
        stepping = self.steps(gpus, subjects) * sum(self.step_parts_s(gpus).values())
        first = max(stepping, self.fetch_s(gpus, subjects))
        return first, stepping if self.keeps_its_part(gpus, subjects) else first

    def whole_s(self, gpus: int, subjects: int) -> float:
        """Compute the seconds of all epochs."""
        first, later = self.epochs_s(gpus, subjects)
        return first + (self.epochs - 1) * later

    def efficiency(self, gpus: int, subjects: int) -> float:
        """Compute the efficiency over all epochs: slices per second per GPU, relative to one GPU that only computes."""
        slices = self.epochs * self.steps(gpus, subjects) * self.slices_per_gpu
        return slices * self.slice_s / self.whole_s(gpus, subjects)

    def waits_for(self, gpus: int, subjects: int) -> str:
        """Name the largest loss of time besides computing, `steps` if an epoch has too few, or `-`."""
        if self.steps(gpus, subjects) < LEAST_STEPS:
            return "steps"
        whole = self.whole_s(gpus, subjects)
        steps = self.epochs * self.steps(gpus, subjects)
        lost = {name: steps * seconds for name, seconds in self.step_parts_s(gpus).items()}
        limits = self.fetch_parts_s(gpus, subjects)
        lost[max(limits, key=lambda name: limits[name])] = whole - sum(lost.values())
        del lost["compute"]
        name = max(lost, key=lambda name: lost[name])
        return name if lost[name] > WORTH_NAMING * whole else "-"


def longest_of(count: int) -> float:
    """Compute the expected maximum of `count` standard normal values (Blom, 1958)."""
    return float(norm.ppf((count - 0.375) / (count + 0.25))) if count > 1 else 0.0


def main() -> None:
    """Print the tables; draw the plot with `--plot`, and check the model with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Cluster):
        default = field.default
        parser.add_argument(f"--{field.name}", type=type(default), default=default, help=f"default {default}")
    parser.add_argument("--plot", type=Path, help="PNG file to draw")
    parser.add_argument("--check", action="store_true", help="compare the model with training in two processes")
    parser.add_argument("--exchange", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.exchange:
        print_exchange(arguments.exchange)
        return
    try:
        cluster = Cluster(**{field.name: getattr(arguments, field.name) for field in fields(Cluster)})
    except ValueError as error:
        parser.error(str(error))
    print(f"{cluster}\n")
    for subjects in SUBJECTS:
        print_table(cluster, subjects)
    print_summary(cluster)
    if arguments.plot:
        try:
            draw(cluster, arguments.plot)
        except (OSError, ValueError) as error:
            parser.error(f"--plot: cannot write {arguments.plot}: {error}. Choose another file.")
    if arguments.check:
        check("tiny", (221, 200))
        check("report", (32, 32))


def print_table(cluster: Cluster, subjects: int) -> None:
    """Print a row for each number of GPUs."""
    slices, size = subjects * cluster.slices_per_subject, cluster.set_bytes(subjects)
    print(f"{subjects:,} subjects, {slices:,} slices, {size / 1e9:,.0f} GB")
    print("GPUs   batch   steps/epoch   first epoch     epoch   all epochs   efficiency      cost   waits for")
    for gpus in GPUS:
        first, later = cluster.epochs_s(gpus, subjects)
        whole = cluster.whole_s(gpus, subjects)
        print(
            f"{gpus:>4} {gpus * cluster.slices_per_gpu:>7} {cluster.steps(gpus, subjects):>13,} "
            f"{duration(first):>13} {duration(later):>9} {duration(whole):>12} "
            f"{cluster.efficiency(gpus, subjects):>12.0%} {gpus * whole / 3600 * cluster.gpu_hour_cost:>9,.0f}   "
            f"{cluster.waits_for(gpus, subjects)}"
        )
    print()


def print_summary(cluster: Cluster) -> None:
    """Print what runs out first for each way to read a set."""
    print("what runs out first over all epochs, and the efficiency")
    print("subjects   GPUs   groups" + "".join(f"{way:>18}" for way in WAYS))
    for subjects in SUMMARY_SUBJECTS:
        for gpus in SUMMARY_GPUS:
            ways = [replace(cluster, **settings) for settings in WAYS.values()]
            cells = [f"{way.waits_for(gpus, subjects)} {way.efficiency(gpus, subjects):>4.0%}" for way in ways]
            groups = ways[1].num_groups(gpus)
            print(f"{subjects:>8,} {gpus:>6} {groups:>8}" + "".join(f"{cell:>18}" for cell in cells))
    print()


def duration(seconds: float) -> str:
    """Format a time, with its unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def draw(cluster: Cluster, path: Path) -> None:
    """Draw the time, the efficiency and the cost of all epochs against the number of GPUs."""
    from matplotlib.figure import Figure

    figure = Figure((5.5, 9), dpi=110, layout="constrained")
    times, shares, costs = figure.subplots(3, 1)
    for subjects in SUBJECTS:
        hours = np.array([cluster.whole_s(gpus, subjects) / 3600 for gpus in GPUS])
        times.plot(GPUS, hours, marker="o", label=f"{subjects:,} subjects")
        shares.plot(GPUS, [100 * cluster.efficiency(gpus, subjects) for gpus in GPUS], marker="o")
        costs.plot(GPUS, hours * np.array(GPUS) * cluster.gpu_hour_cost, marker="o")
    times.set_title(f"hours for {cluster.epochs} epochs", loc="left")
    shares.set_title("efficiency (%)", loc="left")
    costs.set_title(f"cost at {cluster.gpu_hour_cost:g} per GPU hour", loc="left")
    for axes in (times, costs):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,g}")
    shares.set_ylim(0, 105)
    for axes in (times, shares, costs):
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, list(map(str, GPUS)))
        axes.set_xlabel("GPUs")
        axes.grid(alpha=0.3)
    times.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def check(preset: str, size: tuple[int, int]) -> None:
    """Train two separate and two joined processes here, and compare the joined step time with the model's."""
    from loop import make_shards

    from upfield.model.amir import Amir, AmirConfig

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_shards(root, size)
        gradient_bytes = 4.0 * sum(p.numel() for p in Amir(AmirConfig.preset(preset)).parameters())
        exchange = measured_exchange_s(int(gradient_bytes))
        lone: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        joined: list[float] = []
        # They take turns, because other load on the machine varies.
        for repeat in range(CHECK_REPEATS):
            started = {name: start(root, name, preset, 1, 2) for name in (f"lone-{repeat}-0", f"lone-{repeat}-1")}
            first, second = (finished_steps_s(process, root / name, 2) for name, process in started.items())
            lone.append((first, second))
            name = f"joined-{repeat}"
            joined.append(float(finished_steps_s(start(root, name, preset, 2, 4), root / name, 4).mean()))
    compute = statistics.median(float(np.mean(pair)) for pair in lone)
    # Any step of one process may coincide with any step of the other.
    longest = statistics.median(float(np.maximum(first[:, None], second[None]).mean()) for first, second in lone)
    local = Cluster(
        slice_s=compute / 2,
        slices_per_gpu=2,
        spread=(longest / compute - 1) / longest_of(2),
        gradient_bytes=gradient_bytes,
        gpus_per_node=2,
        link_bytes_s=gradient_bytes / exchange,
        latency_s=0.0,
        # All cores compute, so exchanging gradients takes time from computing.
        overlap=0.0,
    )
    parts, measured = local.step_parts_s(2), statistics.median(joined)
    expected = sum(parts.values())
    print(f"two processes of `{preset}`, 2 slices of {size[0]} x {size[1]} each, one thread each")
    print(f"lone processes' step {1e3 * compute:.0f} ms, the longer of two {1e3 * longest:.0f} ms")
    print(f"exchange of {gradient_bytes / 1e6:.1f} MB alone {1e3 * exchange:.1f} ms")
    print(", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in parts.items()), "ms")
    print(f"joined step: model {1e3 * expected:.0f} ms, measured {1e3 * measured:.0f} ms, {measured / expected:.3f}\n")


def start(root: Path, name: str, preset: str, processes: int, batch: int) -> "subprocess.Popen[bytes]":
    """Start a training run of a few steps, with one thread per process."""
    from upfield.distributed.launch import SCRIPT

    settings = {
        "data.shards": root / "shards",
        "data.batch_size": batch,
        "model.preset": preset,
        "run.out": root / name,
        "run.max_steps": 16,
        "run.log_every": 1,
        "run.validate_every": 10**9,
        "run.checkpoint_every": 10**9,
        "run.trackers": "[]",
        "processes": processes,
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def finished_steps_s(process: "subprocess.Popen[bytes]", run: Path, batch: int) -> NDArray[np.float64]:
    """Wait until a training run ends. Return the seconds of its steps without the first quarter."""
    if process.wait() != 0:
        raise SystemExit(f"{run.name}: the training run ended with exit code {process.returncode}.")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [batch / line["slices_per_s"] for line in lines if line["event"] == "train"]
    return np.array(steps[len(steps) // 4 :])


def measured_exchange_s(num_bytes: int) -> float:
    """Measure the seconds in which two processes here exchange `num_bytes`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, __file__, "--exchange", str(num_bytes)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def print_exchange(num_bytes: int) -> None:
    """Sum `num_bytes` over the processes of this job a few times. The first process prints the median time."""
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
