"""Compare sharding with a plain pipeline, and measure it for many subjects.

Prints three tables. The first two compare the same work side by side in one run: the volumes of one subject (both
resamplings, normalisation, slicing), and the whole way from NIfTI files to shards. The plain pipeline is a simple
program with nibabel, scipy.ndimage.zoom, numpy.percentile and webdataset.ShardWriter, in one process. It does the same
zooms for both values of `fit`, although crop_pad would need further steps in scipy. `upfield shard` gets one block per
subject, so that two jobs share six subjects; its start takes more than a second of the time. The third table shows time
and memory for many subjects, whose files are made during the run.

`--subjects 18 200 450` prints all rows of the third table. `--folder` sets the folder for temporary files (450
subjects: about 25 GB).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage

from upfield.common.cores import processor_name

# The grids of the report, and the shapes of typical files, so that both fields need to be resampled.
LOW_SHAPE, LOW_SPACING_MM = (112, 138, 40), (1.6, 1.6, 5.0)
HIGH_SHAPE, HIGH_SPACING_MM = (179, 221, 200), (1.0, 1.0, 1.0)
LOW_FILE = (112, 136, 40)
HIGH_FILE = (176, 240, 256)
PLAIN_SUBJECTS = 3
REPEATS = 3


def draw_head(seed: int, shape: tuple[int, int, int], blur: float) -> np.ndarray:
    """Draw a head `(I, J, K)` int16: an ellipsoid with folds and noise, different for each seed."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    radius = np.sqrt(sum((axis / rng.uniform(0.75, 0.9)) ** 2 for axis in axes))
    phases = rng.uniform(0, 6.28, 3)
    x, y, z = (np.sin(18 * axis + phase) for axis, phase in zip(axes, phases, strict=True))
    head = np.where(radius < 1, 0.6 + 0.3 * x * y * z, 0.0).astype(np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    return np.rint(1000 * np.abs(ndimage.gaussian_filter(head, blur) + 0.03 * noise)).astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Write one NIfTI file with its affine and units."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def write_stack(folder: Path, name: str, voxels: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    """Write a volume with one file per axial slice."""
    for k in range(voxels.shape[2]):
        affine = np.diag((*spacing_mm, 1.0))
        affine[2, 3] = k * spacing_mm[2]
        write_nifti(folder / f"{name}_slice_{k:03d}.nii.gz", voxels[:, :, k : k + 1], affine)


def write_volume(folder: Path, name: str, voxels: np.ndarray) -> None:
    """Write a volume as one file with the axes P-S-R, as in the IXI data set."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PSR"))
    affine = np.eye(4) @ inv_ornt_aff(turn, voxels.shape)
    write_nifti(folder / f"{name}.nii.gz", apply_orientation(voxels, turn), affine)


def write_cohort(folder: Path, num_pairs: int, num_volumes: int, num_heads: int = 10**9) -> Path:
    """Write real pairs as slice stacks, write volumes as single files, and return the path of their cohorts.yaml.

    Drawing a head takes longer than sharding it, so volumes beyond `num_heads` are earlier heads with different noise
    in one corner.
    """
    drawn: dict[tuple[int, int], np.ndarray] = {}
    for number in range(num_pairs):
        for field, shape, spacing_mm, blur in (
            ("low", LOW_FILE, LOW_SPACING_MM, 1.0),
            ("high", HIGH_FILE, HIGH_SPACING_MM, 0.5),
        ):
            write_stack(folder / field, f"sub-{number:03d}", draw_head(number, shape, blur), spacing_mm)
    for number in range(num_volumes):
        key = (number % num_heads, 1)
        if key not in drawn:
            drawn[key] = draw_head(10_000 + number, HIGH_FILE, 0.5)
        corner = np.zeros(HIGH_FILE, np.int16)
        corner[:8, :8, :8] = np.random.default_rng(number).integers(0, 30, (8, 8, 8))
        write_volume(folder / "volumes", f"ixi-{number:03d}", drawn[key] + corner)
    cohorts: list[dict[str, Any]] = []
    if num_pairs:
        fields = {field: f"{field}/{{subject}}_slice_{{slice}}.nii.gz" for field in ("low", "high")}
        cohorts.append({"name": "real", **fields, "synthetic": 1})
    if num_volumes:
        cohorts.append({"name": "ixi", "high": "volumes/{subject}.nii.gz", "fit": "resize"})
    path = folder / "cohorts.yaml"
    path.write_text(json.dumps({"cohorts": cohorts}))
    return path


def plain_zoom(voxels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resample with scipy."""
    return ndimage.zoom(voxels, np.array(shape) / voxels.shape, order=3)


def plain_scale(voxels: np.ndarray) -> np.ndarray:
    """Clip a volume to its 1st and 99th percentile, and scale it to [0, 1]."""
    low, high = np.percentile(voxels, [1, 99])
    return (np.clip(voxels, low, high) - low) / (high - low)


def plain_degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a synthetic low-field volume by the formula of the report."""
    dark = ndimage.gaussian_filter(np.clip(image, 0, 1), 0.7).clip(0, 1) ** 1.4
    return np.clip(dark + rng.standard_normal(dark.shape) * 0.03 * (1 - 0.7 * dark), 0, 1)


def plain_pairs(high: np.ndarray, low: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (low, high) slices of the real pair, if there is one, and of a synthetic pair."""
    rng = np.random.default_rng(0)
    scaled = plain_scale(plain_zoom(high, HIGH_SHAPE))
    lows = [plain_degrade(plain_zoom(scaled, LOW_SHAPE), rng)]
    if low is not None:
        lows.append(plain_zoom(low, LOW_SHAPE))
    for small in lows:
        up = plain_scale(plain_zoom(small, HIGH_SHAPE))
        for x in range(HIGH_SHAPE[0]):
            yield up[x][None].astype(np.float16), scaled[x][None].astype(np.float16)


def plain_load(pattern: str, folder: Path) -> np.ndarray:
    """Read a volume or a stack of slices with nibabel, and reorient it to RAS."""
    images = [nib.as_closest_canonical(nib.load(path)) for path in sorted(folder.glob(pattern))]
    return np.concatenate([image.get_fdata() for image in images], axis=2)


def plain_shards(folder: Path, num_pairs: int, num_volumes: int, out: Path) -> int:
    """Write tar shards from files, subject by subject, and return the number of samples."""
    import webdataset as wds

    samples = 0
    out.mkdir()
    subjects = [(f"sub-{n:03d}_slice_*.nii.gz", True) for n in range(num_pairs)]
    subjects += [(f"ixi-{n:03d}.nii.gz", False) for n in range(num_volumes)]
    with wds.ShardWriter(str(out / "%06d.tar"), maxcount=512, verbose=0) as sink:
        for pattern, paired in subjects:
            high = plain_load(pattern, folder / ("high" if paired else "volumes"))
            low = plain_load(pattern, folder / "low") if paired else None
            for low_slice, high_slice in plain_pairs(high, low):
                sink.write({"__key__": f"{samples:08d}", "low.npy": low_slice, "high.npy": high_slice, "json": {}})
                samples += 1
    return samples


def best_of(function: Callable[[], Any]) -> float:
    """Call a function a few times and return its shortest time in seconds."""
    times: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def compare_volume_work(folder: Path) -> None:
    """Print the first table: from volumes in memory to slices in memory, with one thread each."""
    from threadpoolctl import threadpool_limits

    from upfield.sharding.building.pairs import scan_pairs as pairs
    from upfield.sharding.cohorts.preflight import preflight
    from upfield.sharding.cohorts.subjects import find_subjects
    from upfield.sharding.configuration import CohortConfig, ShardConfig

    print(f"\n{'volume work of one subject':<44} {'scipy (s)':>10} {'upfield (s)':>12} {'ratio':>7}")
    real = {field: f"{field}/{{subject}}_slice_{{slice}}.nii.gz" for field in ("low", "high")}
    cases = [
        ("slice stacks, real and synthetic, resize", CohortConfig("real", fit="resize", **real)),
        ("slice stacks, real and synthetic, crop_pad", CohortConfig("real", fit="crop_pad", **real)),
        ("one volume, synthetic, resize", CohortConfig("ixi", "volumes/{subject}.nii.gz", fit="resize")),
        ("one volume, synthetic, crop_pad", CohortConfig("ixi", "volumes/{subject}.nii.gz", fit="crop_pad")),
    ]
    config, load = ShardConfig("out"), pairs._load
    for name, cohort in cases:
        subject = preflight(find_subjects(cohort, folder).subjects).subjects[0]
        sources = [source for source in (subject.high, subject.low) if source]
        read = {source.paths: load(source) for source in sources}
        high = read[subject.high.paths].voxels
        low = read[subject.low.paths].voxels if subject.low else None

        def work(subject: Any = subject) -> None:
            for pair in pairs.pairs_of_scans(subject, config).pairs:
                for x in range(HIGH_SHAPE[0]):
                    pair.low[[x]], pair.high[x : x + 1]

        # Every call gets the same arrays. Resampling copies them, so nothing is scaled in place.
        pairs._load = lambda source, read=read: read[source.paths]  # pyright: ignore[reportAttributeAccessIssue]
        with threadpool_limits(limits=1):
            work()
            fast_s = best_of(work)
            slow_s = best_of(lambda high=high, low=low: sum(1 for _ in plain_pairs(high, low)))
        pairs._load = load
        print(f"{name:<44} {slow_s:>10.2f} {fast_s:>12.3f} {slow_s / fast_s:>7.1f}")


def run_shard(cohorts: Path, out: Path, *more: str) -> tuple[float, float, float]:
    """Run `upfield shard`. Return its seconds, and the peak memory in MB of the command and of its largest worker."""
    program = (
        "import re, resource, sys; from upfield.sharding.shard import main; code = main(sys.argv[1:]); "
        # ru_maxrss would be that of the process from which the command was forked.
        "own = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
        "print('peaks', own / 1e3, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "--config", str(cohorts), "--out", str(out), *more]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    own_mb, worker_mb = map(float, done.stdout.splitlines()[-1].split()[1:])
    return seconds, own_mb, worker_mb


def compare_whole(folder: Path, num_pairs: int, num_volumes: int) -> None:
    """Print the second table: from NIfTI files to shards on disk, including the start of the program."""
    print(f"\n{'files to shards':<44} {'seconds':>10} {'samples/s':>12} {'ratio':>7}")
    started = time.perf_counter()
    samples = plain_shards(folder, num_pairs, num_volumes, folder / "plain")
    plain_s = time.perf_counter() - started
    print(f"{'nibabel + scipy + webdataset, 1 process':<44} {plain_s:>10.1f} {samples / plain_s:>12.0f} {1:>7.1f}")
    for jobs in (1, 2):
        blocks = ("--subjects_per_block", "1")
        seconds, _, _ = run_shard(folder / "cohorts.yaml", folder / f"shards{jobs}", "--jobs", str(jobs), *blocks)
        name = f"upfield shard --jobs {jobs}"
        print(f"{name:<44} {seconds:>10.1f} {samples / seconds:>12.0f} {plain_s / seconds:>7.1f}")


def show_scale(folder: Path, counts: list[int], jobs: int) -> None:
    """Print the third table: time and memory for many subjects."""
    title = f"subjects (volumes, synthetic), --jobs {jobs}"
    head = f"{'seconds':>9} {'s/subject':>10} {'GB':>7} {'command (MB)':>13} {'largest worker (MB)':>20}"
    print(f"\n{title:<40} {head}")
    for count in counts:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            work = Path(name)
            cohorts = write_cohort(work, 0, count, num_heads=9)
            seconds, own_mb, worker_mb = run_shard(cohorts, work / "shards", "--jobs", str(jobs))
            gigabytes = sum(path.stat().st_size for path in (work / "shards").rglob("*.tar")) / 1e9
        row = f"{seconds:>9.1f} {seconds / count:>10.3f} {gigabytes:>7.2f} {own_mb:>13.0f} {worker_mb:>20.0f}"
        print(f"{count:<40} {row}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="*", default=[18])
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{processor_name()}, {cores} cores, Python {platform.python_version()}, best of {REPEATS}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_cohort(folder, PLAIN_SUBJECTS, PLAIN_SUBJECTS)
        compare_volume_work(folder)
        compare_whole(folder, PLAIN_SUBJECTS, PLAIN_SUBJECTS)
        show_scale(folder, options.subjects, jobs=2)


if __name__ == "__main__":
    main()
