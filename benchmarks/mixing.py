"""Measure how well groups and windows mix subjects, against a full shuffle, and what the order of a large set costs.

The set is packed as `upfield shard` packs it: blocks of 4 subjects, whose samples are shuffled and divided among shards
of at most 512 samples, so two shards hold the slices of the same four subjects. For each number of groups and each size
of the window (`data.groups`, `data.window_shards`), the table shows:

    subjects/batch       mean number of different subjects in a global batch
    subjects/1,000       mean number of different subjects in 1,000 consecutive samples
    pairs, N epochs      share of all pairs of subjects that meet in at least one batch within N epochs
    times, 20 epochs     how often the rarest 1% of the pairs meet within 20 epochs, relative to a full shuffle

A last table has the seconds of processor time and the memory that the order of 18 million samples costs one rank.
"""

import argparse
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from upfield.common.cores import processor_name
from upfield.distributed.samples.fetcher import FetchSchedule
from upfield.distributed.samples.mixture import Mixture
from upfield.distributed.samples.order import SampleOrder

GROUPS, WINDOWS = (1, 2, 4, 8, 16, 64), (4, 16, 64)
EPOCHS = 20
PAIRS_AFTER = (1, 3, EPOCHS)
STRETCH = 1000
SAMPLES_PER_SHARD, SUBJECTS_PER_BLOCK = 512, 4
LARGE_SHARDS, LARGE_BATCH = 35_000, 256


@dataclass(frozen=True)
class PackedSet:
    """A shard set: the size of each shard, and the subject of each sample."""

    shard_sizes: NDArray[np.int64]
    """`(shards,)` number of samples."""
    subjects: NDArray[np.int64]
    """`(samples,)` number of the subject."""


def pack(num_subjects: int, slices: int) -> PackedSet:
    """Pack subjects into shards as `upfield shard` does."""
    rng = np.random.default_rng(0)
    sizes: list[int] = []
    subjects: list[NDArray[np.int64]] = []
    for start in range(0, num_subjects, SUBJECTS_PER_BLOCK):
        block = np.repeat(np.arange(start, min(start + SUBJECTS_PER_BLOCK, num_subjects)), slices)
        subjects.append(rng.permutation(block))
        shards = np.array_split(block, -(-len(block) // SAMPLES_PER_SHARD))
        sizes += [len(shard) for shard in shards]
    return PackedSet(np.array(sizes), np.concatenate(subjects))


def batches_of(order: SampleOrder, epoch: int) -> NDArray[np.int64]:
    """Return the samples of each global batch of an epoch: `(steps, batch_size)`."""
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.stack([order.share(step, 0, 1) for step in steps])


def shuffled_batches(num_samples: int, batch_size: int, epoch: int) -> NDArray[np.int64]:
    """Return the samples `(steps, batch_size)` of the global batches of a full shuffle."""
    samples = np.random.default_rng((1, epoch)).permutation(num_samples)
    return samples[: num_samples // batch_size * batch_size].reshape(-1, batch_size)


def measure(epochs: Iterator[NDArray[np.int64]], subjects: NDArray[np.int64]) -> tuple[list[float], NDArray[np.int64]]:
    """Measure the mixing of epochs, each of which is given by its batches `(steps, batch_size)`.

    Args:
        epochs: batches of each epoch.
        subjects: `(samples,)` subject of each sample.

    Returns:
        The first columns of the table, and how often each pair of subjects met `(pairs,)`.
    """
    num_subjects = int(subjects.max()) + 1
    meetings = np.zeros((num_subjects, num_subjects), dtype=np.int64)
    upper = np.triu_indices(num_subjects, 1)
    per_batch, per_stretch, met = 0.0, 0.0, list[float]()
    for epoch, batches in enumerate(itertools.islice(epochs, EPOCHS), 1):
        seen = subjects[batches]
        present = np.zeros((len(batches), num_subjects), dtype=np.float32)
        np.put_along_axis(present, seen, 1, axis=1)
        meetings += (present.T @ present).astype(np.int64)
        if epoch == 1:
            per_batch = float(present.sum(axis=1).mean())
            stretches = seen.ravel()[: seen.size // STRETCH * STRETCH].reshape(-1, STRETCH)
            per_stretch = float(np.mean([len(set(stretch)) for stretch in stretches.tolist()]))
        if epoch in PAIRS_AFTER:
            met.append(float(np.mean(meetings[upper] > 0)))
    return [per_batch, per_stretch, *met], meetings[upper]


def print_mixing(packed: PackedSet, batch_size: int) -> None:
    """Measure all numbers of groups and sizes of windows, and print the table."""
    num_samples = len(packed.subjects)
    heads = ["groups", "window", "mixed", "subjects", "subjects", *(f"pairs, {n}" for n in PAIRS_AFTER), "times,"]
    units = ["", "shards", "shards", "/batch", "/1,000", *("epoch" if n == 1 else "epochs" for n in PAIRS_AFTER)]
    print(f"global batches of {batch_size}")
    print("".join(f"{head:>12}" for head in heads))
    print("".join(f"{unit:>12}" for unit in [*units, f"{EPOCHS} epochs"]))
    shuffles = (shuffled_batches(num_samples, batch_size, epoch) for epoch in range(EPOCHS))
    columns, shuffled = measure(shuffles, packed.subjects)
    print_row(["full", "shuffle", len(packed.shard_sizes)], columns, 1.0)
    for window, groups in itertools.product(WINDOWS, GROUPS):
        if batch_size % groups:
            continue
        order = SampleOrder(0, packed.shard_sizes, batch_size, window, groups)
        columns, meetings = measure((batches_of(order, epoch) for epoch in range(EPOCHS)), packed.subjects)
        rarest = float(np.quantile(meetings, 0.01) / np.quantile(shuffled, 0.01))
        print_row([groups, window, groups * order.window_shards], columns, rarest)
    print()


def print_row(settings: list[object], columns: list[float], rarest: float) -> None:
    """Print a row of the table of mixing."""
    per_batch, per_stretch, *met = columns
    figures = [f"{per_batch:.1f}", f"{per_stretch:.0f}", *(f"{share:.1%}" for share in met), f"{rarest:.2f}"]
    print("".join(f"{value!s:>12}" for value in [*settings, *figures]), flush=True)


def print_cost(groups: int, mix: str, world_size: int) -> None:
    """Print what the order of a large set costs the first of `world_size` ranks, in a process of its own."""
    sizes, before_mb = np.full(LARGE_SHARDS, SAMPLES_PER_SHARD), psutil.Process().memory_info().rss / 1e6
    mixture = None
    if mix != "none":
        numbers = np.ones(int(sizes.sum()), dtype=np.uint8)
        numbers.reshape(LARGE_SHARDS, SAMPLES_PER_SHARD)[::8, :256] = 0
        mixture = Mixture(("real", "synthetic"), (0.5, 0.5), "epoch" if mix == "epoch" else "batch", numbers)
    begun = time.process_time()
    order = SampleOrder(0, sizes, LARGE_BATCH, 16, groups, mixture)
    schedule = FetchSchedule(order, order.groups_of(0, world_size), order.steps_per_epoch * 9)
    order.share(0, 0, world_size)
    schedule.windows_at(0)
    first_s, begun = time.process_time() - begun, time.process_time()
    for step in range(100):
        order.share(step, 0, world_size)
        schedule.windows_at(step)
    step_us, begun = (time.process_time() - begun) * 1e4, time.process_time()
    order.share(order.steps_per_epoch, 0, world_size)
    schedule.windows_at(order.steps_per_epoch)
    next_s = time.process_time() - begun
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before_mb
    figures = [f"{first_s:.2f}", f"{next_s:.2f}", f"{step_us:.0f}", f"{memory_mb:.0f}"]
    print("".join(f"{value!s:>14}" for value in [groups, mix, world_size, *figures]), flush=True)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=450)
    parser.add_argument("--slices", type=int, default=179)
    parser.add_argument("--cost", nargs=3, metavar=("GROUPS", "MIX", "RANKS"), help="measure one row of the last table")
    options = parser.parse_args()
    if options.cost:
        groups, mix, world_size = options.cost
        return print_cost(int(groups), mix, int(world_size))
    packed = pack(options.subjects, options.slices)
    print(f"{processor_name()}, {os.cpu_count()} cores, numpy {np.__version__}")
    print(f"{options.subjects} subjects of {options.slices} slices in {len(packed.shard_sizes)} shards\n")
    for batch_size in (16, 64):
        print_mixing(packed, batch_size)
    print(f"{LARGE_SHARDS * SAMPLES_PER_SHARD} samples in {LARGE_SHARDS} shards, batches of {LARGE_BATCH}, first rank")
    heads = ["groups", "mix per", "ranks", "first epoch s", "next epoch s", "us per step", "memory MB"]
    print("".join(f"{head:>14}" for head in heads), flush=True)
    for row in (
        ("1", "none", "1"),
        ("16", "none", "1"),
        ("16", "none", "16"),
        ("16", "batch", "1"),
        ("16", "epoch", "1"),
    ):
        subprocess.run([sys.executable, __file__, "--cost", *row], check=True)


if __name__ == "__main__":
    main()
