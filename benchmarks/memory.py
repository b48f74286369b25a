"""Measure the memory of a rank and its workers over three epochs, for few and for many subjects.

Each row is measured in its own process. "reading" reads whole epochs batch by batch, as training does, but does not
train. "training" is `upfield train`, whose log reports its memory. It trains the smallest network on 16 x 16 pixels
cropped from every slice, 64 slices per step, so that 80,550 slices take minutes on a CPU.

Memory is the resident memory (`Rss` of `/proc/PID/smaps_rollup`) of that process and all its descendants, in MB. It is
read 20 times per epoch, and the largest value counts. "opened" is the memory before the first batch: Python, torch, the
manifest and the index. "index" is the memory of the index arrays alone. Files in the system's page cache do not count.

The sets have manifests and indices of full size. Their tars are hard links to one tar: every byte of all shards is
read, but only one shard takes disk space. Targets: the memory differs by at most 5% between epochs, and between the
smallest and the largest number of subjects.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from upfield.common.cores import processor_name

SLICES, SAMPLES_PER_SHARD, SHAPE = 179, 512, (1, 221, 200)
TRAINED_BATCH = 64
EPOCHS, LOOKS = 3, 20
LARGEST_RATIO = 1.05


def write_set(folder: Path, num_subjects: int) -> float:
    """Write `num_subjects` volumes for training and one for validation. Return the size of the former in GB."""
    from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
    from upfield.sharding.cohorts.subjects import Source, Subject
    from upfield.sharding.configuration import ShardConfig
    from upfield.sharding.shardset.shard_index import INDEX_VERSION
    from upfield.sharding.shardset.shard_writer import Sample, WrittenShard, write_shard

    noise = np.random.default_rng(0).random((SAMPLES_PER_SHARD, *SHAPE), dtype=np.float32).astype(np.float16)
    keys = [f"ixi-{i // SLICES:06d}-synthetic-0-x{i % SLICES:03d}" for i in range((num_subjects + 1) * SLICES)]
    samples = (Sample(keys[i], noise[i], noise[i - 1], {"slice": i}) for i in range(SAMPLES_PER_SHARD))
    template = write_shard(folder, "template", samples)
    lines = (folder / "template.idx").read_text(encoding="ascii").splitlines()[1:]
    shards: list[WrittenShard] = []
    num_shards = -(-num_subjects * SLICES // SAMPLES_PER_SHARD)
    parts = [("train", part) for part in np.array_split(np.array(keys[:-SLICES]), num_shards)]
    for split, part in [*parts, ("val", np.array(keys[-SLICES:]))]:
        (folder / split).mkdir(exist_ok=True)
        name = f"{split}/{len(shards) if split == 'train' else 0:06d}"
        os.link(folder / "template.tar", folder / f"{name}.tar")
        index = [line.replace(old, new) for line, old, new in zip(lines, keys, part.tolist(), strict=False)]
        (folder / f"{name}.idx").write_text("\n".join([f"{INDEX_VERSION} {len(part)}", *index]) + "\n")
        entry = replace(template.entry, name=name, samples=len(part))
        shards.append(WrittenShard(entry, template.checksums[: len(part)]))
    names = [f"{number:06d}" for number in range(num_subjects + 1)]
    source = Source((Path("ixi.nii.gz"),), stacked=False)
    splits = ["train"] * num_subjects + ["val"]
    subjects = [Subject("ixi", *pair, source, None, "resize", ()) for pair in zip(names, names, splits, strict=True)]
    sources = [{"cohort": "ixi", "subject": name, "high": "0" * 32, "high_voxels": "0" * 32} for name in names]
    addition = Addition(subjects=subjects, shards=shards, sources=sources)
    write_manifest(folder, content_config(ShardConfig("out")), addition, None)
    return num_subjects * SLICES / SAMPLES_PER_SHARD * template.entry.bytes / 1e9


def resident_mb() -> float:
    """Return the resident memory of this process and all its descendants, in MB."""
    import psutil

    own = psutil.Process()
    total_kb = 0
    for process in (own, *own.children(recursive=True)):
        report = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        total_kb += int(report.partition("\nRss:")[2].split()[0])
    return total_kb * 1024 / 1e6


def watch(folder: Path, num_workers: int, batch_size: int) -> list[float]:
    """Read all epochs. Return, in MB, the memory of the index arrays, of the opened set, and the peak of each epoch."""
    from upfield.distributed.configuration import AugmentConfig
    from upfield.distributed.samples.reader import BatchPlan, TrainingBatches, training_loader
    from upfield.sharding.shardset.shard_split import ShardSplit

    split = ShardSplit(folder, "train")
    index_mb = sum(value.nbytes for value in vars(split.index).values() if isinstance(value, np.ndarray)) / 1e6
    batches = TrainingBatches(split, BatchPlan(0, batch_size, 16, AugmentConfig(), 0, 1))
    steps = batches.steps_per_epoch
    memory_mb = [index_mb, resident_mb(), *[0.0] * EPOCHS]
    for step, _ in enumerate(
        training_loader(batches, range(EPOCHS * steps), num_workers, prefetch=4, pin_memory=False)
    ):
        if step % (steps // LOOKS) == 0:
            epoch = 2 + step // steps
            memory_mb[epoch] = max(memory_mb[epoch], resident_mb())
    return memory_mb


def measure(folder: Path, num_workers: int, batch_size: int) -> list[float]:
    """Run `watch` in its own process and return its result."""
    job = json.dumps({"folder": str(folder), "workers": num_workers, "batch": batch_size})
    command = [sys.executable, __file__, "--job", job]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def train(folder: Path, num_workers: int, num_subjects: int) -> list[float]:
    """Train for three epochs. Return the largest memory in the log lines of each epoch, in MB."""
    from upfield.distributed.launch import SCRIPT

    steps = num_subjects * SLICES // TRAINED_BATCH
    command = [sys.executable, str(SCRIPT), "--data.shards", str(folder), "--run.out", str(folder / "run")]
    command += ["--data.augment.crop", "[16, 16]", "--data.batch_size", str(TRAINED_BATCH), "--model.preset", "tiny"]
    command += ["--data.num_workers", str(num_workers), "--run.epochs", str(EPOCHS), "--run.validate_every", str(10**9)]
    command += ["--run.log_every", str(steps // LOOKS)]
    # Convolutions this small take longer with more threads.
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    epochs_mb = [0.0] * EPOCHS
    for line in map(json.loads, (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        if line["event"] == "train":
            epoch = (line["step"] - 1) // steps
            epochs_mb[epoch] = max(epochs_mb[epoch], 1000 * line["memory_gb"])
    return epochs_mb


def show(counts: list[int], workers: list[int], batch_size: int, folder: Path | None) -> None:
    """Print the table, and whether the targets hold."""
    titles = ["GB", "workers", "index", "opened", *(f"epoch {number}" for number in range(1, EPOCHS + 1))]
    print(f"\n{'':<8} {'subjects':>8} {'samples':>9}{''.join(f'{title:>9}' for title in titles)} {'largest ratio':>14}")
    rows: dict[tuple[int, str, int], list[float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            gigabytes = write_set(Path(name), count)
            for what, num_workers in [*(("reading", number) for number in workers), ("training", max(workers))]:
                if what == "reading":
                    index_mb, opened_mb, *epochs_mb = measure(Path(name), num_workers, batch_size)
                    first = f"{index_mb:>9.1f}{opened_mb:>9.1f}"
                else:
                    epochs_mb, first = train(Path(name), num_workers, count), " " * 18
                rows[count, what, num_workers] = epochs_mb
                numbers = "".join(f"{mb:>9.1f}" for mb in epochs_mb)
                start = f"{what:<8} {count:>8} {count * SLICES:>9}{gigabytes:>9.2f}{num_workers:>9}{first}"
                print(f"{start}{numbers} {max(epochs_mb) / min(epochs_mb):>14.3f}", flush=True)
    print()
    for what in ("reading", "training"):
        kept = {key: row for key, row in rows.items() if key[1] == what}
        print_target(f"epochs, {what}", max(max(row) / min(row) for row in kept.values()))
        peaks = [[max(kept[key]) for key in kept if key[2] == number] for number in {key[2] for key in kept}]
        print_target(f"{min(counts)} and {max(counts)} subjects, {what}", max(max(row) / min(row) for row in peaks))


def print_target(what: str, ratio: float) -> None:
    """Print whether a target holds."""
    held = "held" if ratio <= LARGEST_RATIO else "MISSED"
    print(f"within {LARGEST_RATIO - 1:.0%} between {what}: {held}, largest ratio {ratio:.3f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="*", default=[18, 450])
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="folder for temporary files")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(watch(Path(job["folder"]), job["workers"], job["batch"])))
        return
    cores = len(os.sched_getaffinity(0))
    print(
        f"{processor_name()}, {cores} cores, Python {platform.python_version()}, batches of {options.batch_size}; "
        "RSS in MB"
    )
    show(options.subjects, options.workers, options.batch_size, options.folder)


if __name__ == "__main__":
    main()
