"""Measure the start of a rank for up to 100,000 subjects: seconds and memory until the first batch can be read.

The sets have manifests and indices of full size: four subjects of 179 slices fill two shards, as `upfield shard` packs
them. There are no tars, because nothing is read from them before the first batch. Each row is measured in its own
process, as `upfield train` starts on one GPU:

    manifest     read, check and parse the manifest
    index        find every sample of train and val, in the index of each split (`split`) or of each shard (`.idx`),
                 which is how earlier versions built sets
    order        find the kind of each sample, and compute the order of the first epoch
    peak         largest resident memory of the process in MB; `before` is that of Python and torch alone
    shared       the part of the peak that the processes of a node share, because they map the same file
    requests     number of requests to a web server on this machine, if the set is at an address; nothing is cached yet

Targets: with an index of each split, 100,000 subjects take less than 10 s and 2,000 MB.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from upfield.common.cores import processor_name
from upfield.sharding.shardset.split_index import SplitIndex

SLICES, SHAPE, SUBJECTS_PER_BLOCK, SHARDS_PER_BLOCK = 179, (1, 221, 200), 4, 2
HELD_OUT = 20
MEMBER_BYTES = 128 + 2 * SHAPE[1] * SHAPE[2]
MOST_S, MOST_MB = 10, 2000
# Counts up to which the indices of shards are measured too. At an address they take a request each.
OLD_IN_FOLDER, OLD_AT_ADDRESS = 100_000, 10_000


def make_index(first_subject: int, num_subjects: int) -> SplitIndex:
    """Make up the index of a split: one pair in fifty is real, and the samples of four subjects are shuffled."""
    rng = np.random.default_rng(first_subject)
    units: list[tuple[str, str, str, int]] = []
    for subject in range(first_subject, first_subject + num_subjects):
        cohort, kind = ("real", "real") if subject % 50 == 0 else ("ixi", "synthetic")
        units.append((cohort, f"IXI{subject:06d}", kind, 0))
    block_samples = SUBJECTS_PER_BLOCK * SLICES
    places = np.concatenate(
        [first + rng.permutation(block_samples) for first in range(0, num_subjects * SLICES, block_samples)]
    )
    numbers, slices = (
        part.astype(dtype) for part, dtype in zip(np.divmod(places, SLICES), ("<u4", "<u2"), strict=True)
    )
    num_shards = num_subjects // SUBJECTS_PER_BLOCK * SHARDS_PER_BLOCK
    sizes = np.full(num_shards, block_samples // SHARDS_PER_BLOCK)
    json_bytes = rng.integers(150, 200, len(places), dtype=np.uint16)
    checksums = rng.integers(0, 2**32, len(places), dtype=np.uint32)
    return SplitIndex((MEMBER_BYTES, MEMBER_BYTES), sizes, units, numbers, slices, json_bytes, checksums)


def write_shard_indices(folder: Path, split: str, index: SplitIndex) -> None:
    """Write the `.idx` file of each shard."""
    from upfield.sharding.shardset.shard_index import INDEX_VERSION, MEMBERS

    (folder / split).mkdir()
    names = ["-".join(map(str, unit)) for unit in index.units]
    low, high, record = MEMBERS
    rows = zip(index.unit_numbers.tolist(), index.slices.tolist(), index.json_bytes.tolist(), strict=True)
    starts = iter(index.first_blocks.tolist())
    for number, size in enumerate(index.shard_sizes.tolist()):
        lines = [f"{INDEX_VERSION} {size}"]
        for _, (unit, x, json_bytes), start in zip(range(size), rows, starts, strict=False):
            key, at = f"{names[unit]}-x{x:03d}", 512 * start
            lines.append(
                f"{low} {at + 512} {MEMBER_BYTES} {key}.{low} {high} {at + index.high_offset} {MEMBER_BYTES} "
                f"{key}.{high} {record} {at + index.json_offset} {json_bytes} {key}.{record}"
            )
        (folder / split / f"{number:06d}.idx").write_text("\n".join(lines) + "\n")


def describe_split(split: str, index: SplitIndex) -> dict[str, Any]:
    """Return the entry of a split in the manifest, without an index."""
    ends = index.shard_bytes().tolist()
    shards = [
        {
            "name": f"{split}/{number:06d}",
            "samples": samples,
            "bytes": end + 10240 - end % 10240,
            "sha256": _digest(f"{split}/{number}"),
        }
        for number, (samples, end) in enumerate(zip(index.shard_sizes.tolist(), ends, strict=True))
    ]
    subjects = [{"cohort": cohort, "subject": subject} for cohort, subject, _, _ in index.units]
    return {"samples": index.num_samples, "subjects": subjects, "shards": shards}


def _digest(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def write_set(folder: Path, num_subjects: int, with_index: bool) -> float:
    """Write manifest and indices of a set. Return the size of its manifest and of its indices of splits in MB."""
    from upfield.common.files import write_json
    from upfield.imaging.normalisation import NORMALISATION
    from upfield.sharding.building.manifest_writer import content_config
    from upfield.sharding.configuration import ShardConfig
    from upfield.sharding.shardset.manifest import FORMAT, MANIFEST, VERSION, hash_manifest
    from upfield.sharding.shardset.split_index import describe_index, encode_index

    folder.mkdir()
    splits: dict[str, Any] = {}
    counts, first = {"train": num_subjects, "val": HELD_OUT, "test": HELD_OUT}, 0
    for split, count in counts.items():
        index = make_index(first, count)
        splits[split] = describe_split(split, index)
        if with_index:
            data = encode_index(index, split)
            entry = describe_index(data, split)
            (folder / entry.name).write_bytes(data)
            splits[split]["index"] = asdict(entry)
        else:
            write_shard_indices(folder, split, index)
        first += count
    subjects = [subject for split in splits.values() for subject in split["subjects"]]
    doubt = {"field": "high", "check": "voxels", "reason": "the head reaches the edge of the image"}
    alignment = {
        "similarity_before": 1.0123,
        "similarity_after": 1.2345,
        "rotation_deg": [1.5] * 3,
        "shift_mm": [2.5] * 3,
    }
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "config": content_config(ShardConfig("out")),
        "data_sha256": _digest("data"),
        "normalisation": NORMALISATION,
        "sample": {member: {"shape": SHAPE, "dtype": "float16"} for member in ("low", "high")},
        "splits": splits,
        "sources": [
            subject | {"high": _digest(n)[:32], "high_voxels": _digest(-n)[:32]} for n, subject in enumerate(subjects)
        ],
        "alignments": [subject | alignment for subject in subjects if subject["cohort"] == "real"],
        "doubts": [subject | {"problems": [doubt]} for subject in subjects[::20]],
        "skipped": [],
        "contrasts": {},
        "skull_stripped": {},
    }
    write_json(folder / MANIFEST, tree | {"manifest_sha256": hash_manifest(tree)})
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6


def start_rank(shards: str, cache: Path) -> list[float]:
    """Do what a rank does before its first batch.

    Returns:
        Seconds for manifest, index and order, and the memory in MB: before, at the peak, and shared.
    """
    from upfield.common.addresses import is_remote
    from upfield.distributed.configuration import DataConfig
    from upfield.distributed.samples.groups import default_groups
    from upfield.distributed.samples.reader import BatchPlan, TrainingBatches
    from upfield.sharding.shardset.shard_set import open_set

    before_mb = peak_mb()
    data = DataConfig(shards, batch_size=64, cache_dir=cache)
    marks = [time.perf_counter()]
    opened = open_set(shards, data)
    marks.append(time.perf_counter())
    train, _ = opened.split("train"), opened.split("val")
    marks.append(time.perf_counter())
    groups = default_groups(data, is_remote(shards))
    batches = TrainingBatches(train, BatchPlan(0, data.batch_size, data.window_shards, data.augment, 0, 1, groups))
    batches.samples_at(0)
    marks.append(time.perf_counter())
    shared_mb = sum(index.bytes for split in ("train", "val") if (index := opened.manifest.index(split))) / 1e6
    return [*np.diff(marks).tolist(), before_mb, peak_mb(), shared_mb]


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    report = Path("/proc/self/status").read_text(encoding="ascii")
    return int(report.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[str]:
    """Serve a folder on loopback. Each request adds a line to `log`."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with log.open("w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{re.findall(r' port ([0-9]+)', server.stdout.readline())[0]}"
        finally:
            server.kill()


def measure(shards: str, cache: Path) -> list[float]:
    """Run `start_rank` in its own process and return its result."""
    job = json.dumps({"shards": shards, "cache": str(cache)})
    done = subprocess.run([sys.executable, __file__, "--job", job], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def show(counts: list[int], scratch: Path | None) -> None:
    """Print the table, and whether the targets hold."""
    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}\n")
    titles = ("files MB", "manifest s", "index s", "order s", "total s", "before", "peak", "shared", "requests")
    print(
        f"{'subjects':>8} {'samples':>10} {'shards':>7}  {'index':<6} {'place':<8}{''.join(f'{t:>11}' for t in titles)}"
    )
    held: list[bool] = []
    for count in counts:
        for kind in ("split", ".idx"):
            with tempfile.TemporaryDirectory(dir=scratch) as name:
                folder = Path(name)
                files_mb = write_set(folder / "set", count, kind == "split")
                for place in ("folder", "address"):
                    if kind == ".idx" and count > (OLD_IN_FOLDER if place == "folder" else OLD_AT_ADDRESS):
                        continue
                    with serve(folder, folder / "log") as address:
                        shards = str(folder / "set") if place == "folder" else f"{address}/set"
                        *times_s, before_mb, most_mb, shared_mb = measure(shards, folder / "cache")
                    requests = len(re.findall(r'"GET |"HEAD ', (folder / "log").read_text()))
                    numbers = [f"{files_mb:.1f}", *(f"{t:.2f}" for t in (*times_s, sum(times_s)))]
                    numbers += [f"{value:.0f}" for value in (before_mb, most_mb, shared_mb, requests)]
                    samples, shards_of_it = count * SLICES, count // SUBJECTS_PER_BLOCK * SHARDS_PER_BLOCK
                    print(
                        f"{count:>8} {samples:>10} {shards_of_it:>7}  {kind:<6} {place:<8}"
                        f"{''.join(f'{number:>11}' for number in numbers)}",
                        flush=True,
                    )
                    if kind == "split":
                        held.append(sum(times_s) < MOST_S and most_mb < MOST_MB)
    print(f"\nless than {MOST_S} s and {MOST_MB} MB with an index of each split: {'held' if all(held) else 'MISSED'}")


def main() -> None:
    """Measure one row if this process was started for it, otherwise all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="multiples of 4")
    parser.add_argument("--folder", type=Path, help="folder for temporary files, of which there are up to 3 GB")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(start_rank(job["shards"], Path(job["cache"]))))
    else:
        show(options.subjects, options.folder)


if __name__ == "__main__":
    main()
