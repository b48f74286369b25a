"""Compare the time per subject of the recipes for synthetic low field, side by side in one run.

`SCAN...` are high-field scans. For each, all pairs of a subject are made, as `upfield shard` makes them: the file is
read, resampled and normalised, and each variant gets its low field. The recipes alternate, and each run draws other
scanners, so that no operator of an earlier one can be used again. The best of the repeats counts. Times are those of
the processor, so that other programs on the machine change them little.
"""

import argparse
import os
import time
from pathlib import Path
from typing import get_args

from upfield.common.cores import processor_name
from upfield.sharding.building.pairs.subject_pairs import make_pairs
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import Subject, find_subjects
from upfield.sharding.configuration import CohortConfig, Recipe, ShardConfig, SyntheticConfig

RECIPES = [name for name in get_args(Recipe) if name != "both"]
REPEATS = 5


def subject_of(scan: Path, variants: int) -> Subject:
    """Return a scan as the one subject of a cohort."""
    cohort = CohortConfig("one", str(scan.with_name("{subject}" + scan.name[1:])), synthetic=variants, contrast="T1w")
    subjects = [subject for subject in find_subjects(cohort, scan.parent).subjects if subject.high.paths[0] == scan]
    return preflight(subjects).subjects[0]


def time_recipes(subject: Subject) -> dict[str, float]:
    """Return the shortest time in seconds with each recipe."""
    times: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    cohort = CohortConfig("one", "{subject}")
    for seed in range(REPEATS):
        for recipe in RECIPES:
            config = ShardConfig(out=Path("unused"), cohorts=[cohort], synthetic=SyntheticConfig(recipe), seed=seed)
            started = time.process_time()
            make_pairs(subject, config)
            times[recipe].append(time.process_time() - started)
    return {recipe: min(each) for recipe, each in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN")
    scans = parser.parse_args().scans
    print(f"{processor_name()}, {len(os.sched_getaffinity(0))} cores, best of {REPEATS}")
    print(f"{'scan':<28} {'variants':>8} {'report (s)':>11} {'physics (s)':>12} {'ratio':>6}")
    for scan in scans:
        for variants in (1, 4):
            times = time_recipes(subject_of(scan.resolve(), variants))
            ratio = times["physics"] / times["report"]
            name = scan.name.split(".")[0][:28]
            print(
                f"{name:<28} {variants:>8} {times['report']:>11.3f} {times['physics']:>12.3f} {ratio:>6.2f}", flush=True
            )


if __name__ == "__main__":
    main()
