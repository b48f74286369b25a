"""Compare the time per subject of the recipes for synthetic low field, side by side in one run.

`SCAN...` are high-field scans. Without them, a head of concentric shells is made. For each scan, all pairs of a subject
are made, as `upfield shard` makes them: the file is read, resampled and normalised, and each variant gets its low
field. The recipes alternate, and each run draws other scanners, so that no operator of an earlier one can be used
again. The best of the repeats counts. Times are those of the processor, so that other programs change them little.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np

from upfield.common.cores import processor_name
from upfield.sharding.building.pairs.subject_pairs import make_pairs
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import SourceVolume, Subject, find_subjects
from upfield.sharding.configuration import CohortConfig, Recipe, ShardConfig, SyntheticConfig

RECIPES = [name for name in get_args(Recipe) if name != "both"]
REPEATS = 5
VARIANTS = (1, 4)


def write_shells(path: Path) -> Path:
    """Write a head of concentric shells with noise, and return its path."""
    places = np.meshgrid(*(np.arange(count) - (count - 1) / 2 for count in (176, 240, 256)), indexing="ij")
    radius = np.sqrt(sum(place**2 for place in places))
    head = np.zeros(radius.shape, np.float32)
    for edge, level in ((80, 400), (76, 950), (70, 30), (66, 200), (62, 600), (48, 850), (20, 200)):
        head[radius < edge] = level
    noise = np.random.default_rng(0).normal(0, 15, (2, *head.shape))
    nib.Nifti1Image(np.hypot(head + noise[0], noise[1]).astype(np.int16), np.eye(4)).to_filename(path)
    return path


def subject_of(scan: Path, variants: int) -> Subject[SourceVolume]:
    """Return a scan as the one subject of a cohort."""
    cohort = CohortConfig("one", str(scan.with_name("{subject}" + scan.name[1:])), synthetic=variants, contrast="T1w")
    subjects = [
        subject
        for subject in find_subjects(cohort, scan.parent).subjects
        if subject.high and subject.high.paths[0] == scan
    ]
    return preflight(subjects).subjects[0]


def time_recipes(subject: Subject[SourceVolume]) -> dict[str, float]:
    """Return the shortest time in seconds with each recipe."""
    times: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    cohort = CohortConfig("one", "{subject}")
    for seed in range(REPEATS):
        for recipe in RECIPES:
            config = ShardConfig(out="unused", cohorts=[cohort], synthetic=SyntheticConfig(recipe), seed=seed)
            started = time.process_time()
            make_pairs(subject, config)
            times[recipe].append(time.process_time() - started)
    return {recipe: min(each) for recipe, each in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", type=Path, metavar="SCAN")
    scans = parser.parse_args().scans
    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, best of {REPEATS}")
    print(f"{'scan':<28} {'variants':>8} {'report (s)':>11} {'physics (s)':>12} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for scan in scans or [write_shells(Path(folder) / "shells.nii.gz")]:
            for variants in VARIANTS:
                times = time_recipes(subject_of(scan.resolve(), variants))
                figures = (
                    f"{times['report']:>11.3f} {times['physics']:>12.3f} {times['physics'] / times['report']:>6.2f}"
                )
                print(f"{scan.name.split('.')[0][:28]:<28} {variants:>8} {figures}", flush=True)


if __name__ == "__main__":
    main()
