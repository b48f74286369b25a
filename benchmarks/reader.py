"""Compare our reader with the loaders of other libraries, and with plain reads of the same files.

The same samples, of real size, are written for upfield and WebDataset (the same tars), MosaicML Streaming and LitData.
Each loader reads shuffled batches of low and high field as float16 tensors, epoch after epoch, from files in the page
cache. The first epoch is not timed; it must hold every sample once. Each measurement runs in its own process. Each
round measures every loader once, so that a noisy machine disturbs all of them alike, and the best round counts. The
clock starts after the first tenth of an epoch, so starting workers is not timed. torch has one thread, because with
more threads collating is many times slower if another process uses the second core.

Two bounds are measured without workers and batches: whole files with one `read()` each, and 1 MiB at a time into the
same memory, the fastest way out of the page cache. Targets: at least 5 times the speed of the best other loader, and
without workers at least half the speed of the faster bound.

Install the other libraries outside the project's environment: `pip install --no-deps --target PEERS -r
benchmarks/nodes/peer-requirements.txt`, then `benchmarks/reader.py --peers PEERS`. A library that cannot be loaded is
left out, and the table says so.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from upfield.common.cores import processor_name

SHAPE = (1, 221, 200)
NUM_SHARDS = 8
BATCH_SIZES = (4, 16)
WORKERS = (0, 2)
BATCHES_AHEAD = 4
LEAST_S = 1.0
OURS = "upfield"
BOUNDS = {"read(), whole files": -1, "read(), 1 MiB at a time": 2**20}
# MosaicML Streaming's performance page advises a large `predownload`: by default its threads sleep between samples.
TUNED = "MosaicML, predownload 2**20"
PACKAGES = ("webdataset", "mosaicml-streaming", "litdata")
LEAST_RATIO, LEAST_SHARE = 5.0, 0.5

Epoch = Iterable[tuple[Any, Any]]


def draw_sample(number: int, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return low and high `SHAPE` float16, cut from `noise`, with the sample's number in their first two pixels."""
    low, high = (noise[(number * step) % len(noise)].copy() for step in (7, 13))
    for image in (low, high):
        image[0, 0, :2] = number // 64, number % 64
    return low, high


def draw_noise() -> np.ndarray:
    """Draw noise `(50, *SHAPE)` float16 in [0, 1)."""
    return np.random.default_rng(0).random((50, *SHAPE), dtype=np.float32).astype(np.float16)


def numbers_of(images: Any) -> list[int]:
    """Read the samples' numbers from a batch `(N, *SHAPE)`."""
    return (images[:, 0, 0, 0].double() * 64 + images[:, 0, 0, 1].double()).long().tolist()


def write_upfield(folder: Path, num_samples: int) -> None:
    """Write a shard set in the format of `upfield shard`."""
    from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
    from upfield.sharding.configuration import ShardConfig
    from upfield.sharding.shardset.shard_writer import Sample, write_shard

    noise, shards = draw_noise(), []
    for numbers in np.array_split(np.arange(num_samples), NUM_SHARDS):
        samples = (Sample(f"noise-{n:06d}-real-0-x000", *draw_sample(n, noise), {"slice": 0}) for n in numbers.tolist())
        shards.append(write_shard(folder, f"train/{len(shards):06d}", samples))
    write_manifest(folder, content_config(ShardConfig("out")), Addition(subjects=[], shards=shards), None)


def write_mosaicml(folder: Path, num_samples: int) -> None:
    """Write MDS shards that hold the unchanged bytes of the arrays."""
    stand_in_for_torchvision()
    from streaming import MDSWriter

    noise = draw_noise()
    column = f"ndarray:float16:{','.join(map(str, SHAPE))}"
    with MDSWriter(out=str(folder), columns={"low": column, "high": column}) as writer:
        for number in range(num_samples):
            writer.write(dict(zip(("low", "high"), draw_sample(number, noise), strict=True)))


def litdata_sample(number: int, noise: np.ndarray) -> dict[str, Any]:
    """Return a sample as tensors, which LitData reads many times faster than arrays."""
    import torch

    return dict(zip(("low", "high"), map(torch.from_numpy, draw_sample(number, noise)), strict=True))


def write_litdata(folder: Path, num_samples: int) -> None:
    """Write LitData's chunks, of the size that its documentation uses."""
    import litdata

    draw = partial(litdata_sample, noise=draw_noise())
    litdata.optimize(draw, list(range(num_samples)), str(folder), num_workers=1, chunk_bytes="64MB", verbose=False)


def stand_in_for_torchvision() -> None:
    """Let MosaicML Streaming be imported without torchvision.

    Only its image data sets use torchvision, and the wheel from package registries does not load beside a CPU build of
    torch.
    """
    import transformers.feature_extraction_utils
    import transformers.tokenization_utils_base  # noqa: F401 (they must look for torchvision before the stand-in exists)

    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules["torchvision.datasets"].__dict__["VisionDataset"] = type("VisionDataset", (), {})
    sys.modules["torchvision.transforms.functional"].__dict__["to_tensor"] = None


def worker_options(num_workers: int) -> dict[str, Any]:
    """Return the options that make any torch loader with workers faster."""
    return {"persistent_workers": True, "prefetch_factor": BATCHES_AHEAD} if num_workers else {}


def read_upfield(folder: Path, batch_size: int, num_workers: int) -> Iterator[Epoch]:
    """Read with the loader of `upfield train`."""
    from upfield.distributed.configuration import AugmentConfig
    from upfield.distributed.samples.reader import BatchPlan, TrainingBatches, training_loader
    from upfield.sharding.shardset.shard_split import ShardSplit

    batches = TrainingBatches(ShardSplit(folder / OURS, "train"), BatchPlan(0, batch_size, 16, AugmentConfig(), 0, 1))
    loader = training_loader(batches, range(2**40), num_workers, prefetch=4, pin_memory=False)
    while True:
        yield ((batch.low, batch.high) for batch in islice(loader, batches.steps_per_epoch))


def read_webdataset(folder: Path, batch_size: int, num_workers: int) -> Iterator[Epoch]:
    """Read the same tars, batched in the workers as WebDataset's documentation recommends, without JSON members."""
    import webdataset as wds

    tars = sorted(str(path) for path in (folder / OURS / "train").glob("*.tar"))
    wanted = wds.WebDataset(tars, shardshuffle=len(tars), select_files=lambda name: name.endswith(".npy"))
    batches = wanted.shuffle(1000).decode().to_tuple("low.npy", "high.npy").batched(batch_size)
    loader = wds.WebLoader(batches, batch_size=None, num_workers=num_workers, **worker_options(num_workers))
    while True:
        yield iter(loader)


def read_mosaicml(folder: Path, batch_size: int, num_workers: int, predownload: int | None = None) -> Iterator[Epoch]:
    """Read local MDS shards in the default shuffled order; threads look `predownload` samples ahead."""
    stand_in_for_torchvision()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    options: dict[str, Any] = {"predownload": predownload, "batch_size": batch_size, "shuffle": True}
    dataset = StreamingDataset(local=str(folder / "mosaicml"), **options)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **worker_options(num_workers))
    while True:
        yield ((batch["low"], batch["high"]) for batch in loader)


def read_litdata(folder: Path, batch_size: int, num_workers: int) -> Iterator[Epoch]:
    """Read LitData's local chunks, shuffled."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, drop_last=False)
    options = worker_options(num_workers)
    loader = litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **options)
    while True:
        yield ((batch["low"], batch["high"]) for batch in loader)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    OURS: write_upfield,
    "mosaicml": write_mosaicml,
    "litdata": write_litdata,
}
READERS: dict[str, tuple[Callable[[Path, int, int], Iterator[Epoch]], str]] = {
    OURS: (read_upfield, OURS),
    "WebDataset": (read_webdataset, OURS),
    "MosaicML Streaming": (read_mosaicml, "mosaicml"),
    TUNED: (partial(read_mosaicml, predownload=2**20), "mosaicml"),
    "LitData": (read_litdata, "litdata"),
}


def check_epoch(epoch: Epoch, num_samples: int) -> None:
    """Check that an epoch holds each sample once, as pairs of float16 tensors."""
    seen: list[int] = []
    for low, high in epoch:
        found = tuple((str(images.dtype), tuple(images.shape[1:])) for images in (low, high))
        assert found == (("torch.float16", SHAPE),) * 2, found
        assert numbers_of(low) == numbers_of(high)
        seen += numbers_of(low)
    assert sorted(seen) == list(range(num_samples)), f"{len(seen)} samples, {len(set(seen))} different ones"


def warm(folder: Path) -> None:
    """Read files into the page cache, because some systems drop pages that were not used for a minute."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.read_bytes()


def batch_rate(epochs: Iterator[Epoch], files: Path, num_samples: int, batch_size: int) -> float:
    """Measure the samples per second over whole epochs; the first tenth of each epoch does not count."""
    check_epoch(next(epochs), num_samples)
    samples, spent_s = 0, 0.0
    while spent_s < LEAST_S:
        warm(files)
        epoch = iter(next(epochs))
        for _ in range(num_samples // batch_size // 10):
            next(epoch)
        started = time.perf_counter()
        samples += sum(len(low) for low, _ in epoch)
        spent_s += time.perf_counter() - started
    return samples / spent_s


def raw_rate(folder: Path, num_samples: int, chunk_bytes: int) -> float:
    """Measure the samples per second of plain reads of the same files, whole if `chunk_bytes` is negative."""
    warm(folder / OURS)
    buffer, times = bytearray(max(chunk_bytes, 0)), []
    while sum(times) < LEAST_S:
        started = time.perf_counter()
        for path in (folder / OURS / "train").glob("*.tar"):
            with path.open("rb", buffering=0) as file:
                if chunk_bytes < 0:
                    file.read()
                while file.readinto(buffer):
                    pass
        times.append(time.perf_counter() - started)
    return num_samples * len(times) / sum(times)


def do_job(job: dict[str, Any]) -> Any:
    """Do the job of a child process: write one format, or measure one loader or bound."""
    folder, num_samples = Path(job["folder"]), job["samples"]
    if job["do"] == "write":
        return WRITERS[job["name"]](folder / job["name"], num_samples)
    if job["name"] in BOUNDS:
        return {"0": raw_rate(folder, num_samples, BOUNDS[job["name"]])}
    read, files = READERS[job["name"]]
    return {
        str(size): batch_rate(read(folder, size, job["workers"]), folder / files, num_samples, size)
        for size in BATCH_SIZES
    }


def run_job(peers: Path | None, timeout_s: float = 300, **job: Any) -> tuple[Any, str]:
    """Do a job in a child process. Return its result, and the reason if there is none."""
    paths = [os.environ.get("PYTHONPATH", ""), *([str(peers.resolve())] if peers else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore"}
    # Without workers, a loader uses one core: a second thread of torch.stack would spin while the other core is busy.
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=True)
    except subprocess.TimeoutExpired:
        return None, f"not finished after {timeout_s:.0f} s"
    except subprocess.CalledProcessError as error:
        return None, (error.stderr.strip().splitlines() or ["killed"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


Rates = dict[tuple[str, int, int], float]
"""Samples per second, by loader or bound, number of workers, and batch size (0 for a bound)."""


def measure(folder: Path, num_samples: int, rounds: int, peers: Path | None) -> tuple[Rates, dict[str, str]]:
    """Return the best rates over all rounds, and the reason for each loader that could not be measured."""
    best: Rates = {}
    missing: dict[str, str] = {}
    jobs = [(name, 0) for name in BOUNDS] + [(name, workers) for workers in WORKERS for name in READERS]
    for _ in range(rounds):
        for name, workers in jobs:
            if name in missing:
                continue
            job = {"do": "read", "name": name, "workers": workers, "folder": str(folder), "samples": num_samples}
            rates, reason = run_job(peers, **job)
            if rates is None:
                missing[name] = reason
                continue
            for size, rate in rates.items():
                key = (name, workers, int(size))
                best[key] = max(best.get(key, 0.0), rate)
    return best, missing


def show(rates: Rates, missing: dict[str, str]) -> None:
    """Print the rates, their ratios, and whether the targets hold."""
    columns = [(workers, size) for workers in WORKERS for size in BATCH_SIZES]
    print(f"\n{'samples/s':<28}" + "".join(f"{f'{workers} workers':>12}" for workers, _ in columns))
    print(f"{'':<28}" + "".join(f"{f'batch {size}':>12}" for _, size in columns))
    for name in BOUNDS:
        row(name, [rates[name, 0, 0]], ",.0f")
    for name in READERS:
        if name in missing:
            print(f"{name:<28}  not measured: {missing[name]}")
        else:
            row(name, [rates[name, *column] for column in columns], ",.0f")
    if OURS in missing:
        return
    others = [name for name in READERS if name != OURS and name not in missing]
    best = {column: max(rates[name, *column] for name in others) for column in columns}
    default = {column: max(rates[name, *column] for name in others if name != TUNED) for column in columns}
    bound = max(rates[name, 0, 0] for name in BOUNDS)
    ratios = {column: rates[OURS, *column] / best[column] for column in columns}
    to_default = {column: rates[OURS, *column] / default[column] for column in columns}
    shares = {column: rates[OURS, *column] / bound for column in columns}
    row("times the best other", ratios.values(), ".1f")
    row("times the best with defaults", to_default.values(), ".1f")
    row("share of the faster read()", shares.values(), ".2f")
    row("faster read() / best other", [bound / rate for rate in best.values()], ".1f")
    print()
    for workers in WORKERS:
        where = [column for column in columns if column[0] == workers]
        print_target(f"times the best other, {workers} workers", [ratios[column] for column in where], LEAST_RATIO)
        print_target(
            f"times the best with defaults, {workers} workers", [to_default[column] for column in where], LEAST_RATIO
        )
    print_target(
        "of the faster read(), 0 workers", [shares[column] for column in columns if not column[0]], LEAST_SHARE
    )


def row(title: str, values: Iterable[float], form: str) -> None:
    """Print a row of the table."""
    print(f"{title:<28}" + "".join(f"{value:>12{form}}" for value in values))


def print_target(what: str, values: list[float], target: float) -> None:
    """Print whether a target holds."""
    least = min(values)
    print(f"at least {target:g} {what}: {'held' if least >= target else 'MISSED'}, {least:.2f} where it is least")


def describe(peers: Path | None) -> str:
    """Return the names of the processor and of the compared libraries, with versions."""
    if peers:
        sys.path.append(str(peers))
    versions: list[str] = []
    for package in ("torch", "numpy", *PACKAGES):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    cores = len(os.sched_getaffinity(0))
    return f"{processor_name()}, {cores} cores, Python {platform.python_version()}\n{', '.join(versions)}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048, help="number of samples, a multiple of the batch sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="folder for temporary files")
    parser.add_argument("--peers", type=Path, default=None, help="folder with the other libraries")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(do_job(json.loads(options.job))))
        # Some threads of the other libraries never end.
        sys.stdout.flush()
        os._exit(0)
    print(f"{describe(options.peers)}\n{options.samples} samples, best of {options.rounds} rounds", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for writer in WRITERS:
            run_job(options.peers, do="write", name=writer, folder=name, samples=options.samples)
        show(*measure(Path(name), options.samples, options.rounds, options.peers))


if __name__ == "__main__":
    main()
