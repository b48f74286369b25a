"""Memory of a rank and its workers over three epochs, and over many subjects.

Reads whole epochs as training does, without training, in a process of its own for each row. Memory is RSS (resident
memory, `Rss` of `/proc/PID/smaps_rollup`) of that process and all below it, in MB; of an epoch the largest of 20 values
counts. "opened" is before the first batch: Python, torch, the manifest and the index, whose arrays are told apart as
"index". Files that the system keeps in its page cache belong to nobody and are not counted.

The sets have manifests and indices of full size. Their tars are hard links to one: every byte of all shards is read,
yet they take the disk of one shard. Targets: within 5% between epochs, and between the fewest and the most subjects.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SLICES, SAMPLES_PER_SHARD, SHAPE = 179, 512, (1, 221, 200)
EPOCHS, LOOKS = 3, 20
LARGEST_RATIO = 1.05


def write_set(folder: Path, num_subjects: int) -> float:
    """Write a training split of `num_subjects` volumes; give the bytes of its shards in GB."""
    from upfield.sharding.cohort import Source, Subject
    from upfield.sharding.configuration import ShardConfig
    from upfield.sharding.manifest import Addition, content_config, write_manifest
    from upfield.sharding.tarshard import INDEX_VERSION, Sample, ShardEntry, write_shard

    noise = np.random.default_rng(0).random((SAMPLES_PER_SHARD, *SHAPE), dtype=np.float32).astype(np.float16)
    keys = [f"ixi-{i // SLICES:06d}-synthetic-0-x{i % SLICES:03d}" for i in range(num_subjects * SLICES)]
    samples = (Sample(keys[i], noise[i], noise[i - 1], {"slice": i}) for i in range(SAMPLES_PER_SHARD))
    template = write_shard(folder, "template", samples)
    lines = (folder / "template.idx").read_text(encoding="ascii").splitlines()[1:]
    (folder / "train").mkdir()
    entries: list[ShardEntry] = []
    for part in np.array_split(np.array(keys), -(-len(keys) // SAMPLES_PER_SHARD)):
        name = f"train/{len(entries):06d}"
        os.link(folder / "template.tar", folder / f"{name}.tar")
        index = [line.replace(old, new) for line, old, new in zip(lines, keys, part.tolist(), strict=False)]
        (folder / f"{name}.idx").write_text("\n".join([f"{INDEX_VERSION} {len(part)}", *index]) + "\n")
        entries.append(ShardEntry(name, len(part), template.bytes, template.sha256))
    names = [f"{number:06d}" for number in range(num_subjects)]
    source = Source((Path("ixi.nii.gz"),), stacked=False)
    subjects = [Subject("ixi", name, name, "train", source, None, "resize", ()) for name in names]
    sources = [{"cohort": "ixi", "subject": name, "high": "0" * 32, "high_voxels": "0" * 32} for name in names]
    addition = Addition(subjects=subjects, entries=entries, sources=sources)
    write_manifest(folder, content_config(ShardConfig()), addition, None)
    return len(keys) / SAMPLES_PER_SHARD * template.bytes / 1e9


def resident_mb() -> float:
    """Give the memory of this process and all below it."""
    import psutil

    own = psutil.Process()
    total_kb = 0
    for process in (own, *own.children(recursive=True)):
        report = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        total_kb += int(report.partition("\nRss:")[2].split()[0])
    return total_kb * 1024 / 1e6


def watch(folder: Path, num_workers: int, batch_size: int) -> list[float]:
    """Read all epochs; give the memory of the index's arrays, of all when opened, and the largest of each epoch."""
    from upfield.distributed.configuration import AugmentConfig
    from upfield.distributed.reader import Sequencing, TrainingBatches, training_loader
    from upfield.sharding.shardset import ShardSplit

    split = ShardSplit(folder, "train")
    index_mb = sum(value.nbytes for value in vars(split).values() if isinstance(value, np.ndarray)) / 1e6
    batches = TrainingBatches(split, Sequencing(0, batch_size, 16, AugmentConfig(), 0, 1))
    steps = batches.steps_per_epoch
    found_mb = [index_mb, resident_mb(), *[0.0] * EPOCHS]
    for step, _ in enumerate(
        training_loader(batches, range(EPOCHS * steps), num_workers, prefetch=4, pin_memory=False)
    ):
        if step % (steps // LOOKS) == 0:
            epoch = 2 + step // steps
            found_mb[epoch] = max(found_mb[epoch], resident_mb())
    return found_mb


def measure(folder: Path, num_workers: int, batch_size: int) -> list[float]:
    """Watch in a process of its own."""
    job = json.dumps({"folder": str(folder), "workers": num_workers, "batch": batch_size})
    command = [sys.executable, __file__, "--job", job]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def show(counts: list[int], workers: list[int], batch_size: int, folder: Path | None) -> None:
    """Print the table and whether targets hold."""
    titles = ["GB", "workers", "index", "opened", *(f"epoch {number}" for number in range(1, EPOCHS + 1))]
    print(f"\n{'subjects':>8} {'samples':>9}{''.join(f'{title:>9}' for title in titles)} {'largest ratio':>14}")
    rows: dict[tuple[int, int], list[float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            gigabytes = write_set(Path(name), count)
            for num_workers in workers:
                index_mb, opened_mb, *epochs_mb = measure(Path(name), num_workers, batch_size)
                rows[count, num_workers] = epochs_mb
                numbers = "".join(f"{mb:>9.1f}" for mb in (index_mb, opened_mb, *epochs_mb))
                start = f"{count:>8} {count * SLICES:>9}{gigabytes:>9.2f}{num_workers:>9}"
                print(f"{start}{numbers} {max(epochs_mb) / min(epochs_mb):>14.3f}", flush=True)
    print()
    tell("epochs", max(max(row) / min(row) for row in rows.values()))
    peaks = [[max(rows[count, num_workers]) for count in counts] for num_workers in workers]
    tell(f"{min(counts)} and {max(counts)} subjects", max(max(row) / min(row) for row in peaks))


def tell(what: str, ratio: float) -> None:
    """Print whether a target holds."""
    held = "held" if ratio <= LARGEST_RATIO else "MISSED"
    print(f"within {LARGEST_RATIO - 1:.0%} between {what}: {held}, largest ratio {ratio:.3f}")


def machine() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="*", default=[18, 450])
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where files are made")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(watch(Path(job["folder"]), job["workers"], job["batch"])))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"{machine()}, {cores} cores, Python {platform.python_version()}, batches of {options.batch_size}; RSS in MB")
    show(options.subjects, options.workers, options.batch_size, options.folder)


if __name__ == "__main__":
    main()
