"""Print the gain of a model over cubic interpolation for each held-out head and recipe.

    python benchmarks/starter.py REPORT --shards SHARDS [--split test]

REPORT is a folder that `upfield evaluate` wrote. Without it, nothing is printed. The gain of a head is the mean over
its volumes of that recipe; that of a volume, the mean over its slices.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from upfield.sharding.shardset.configuration import AccessConfig
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.volume_pairs import group_volumes

METRICS = {"slices.csv": ("psnr_slice_foreground", "ssim_slice"), "volumes.csv": ("ms_ssim_axial",)}
DECIMALS = {"psnr_slice_foreground": 2, "ssim_slice": 3, "ms_ssim_axial": 3}
# Cubic and model value of one volume.
Value = tuple[float, float]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path, help="folder that upfield evaluate wrote")
    parser.add_argument("--shards", help="shard set that was measured")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    arguments = parser.parse_args()
    if arguments.report is None or arguments.shards is None:
        print("There is nothing to print without a report and its shard set.")
        return
    recipes = read_recipes(arguments.shards, arguments.split)
    names = [name for columns in METRICS.values() for name in columns]
    print(f"| head | recipe | volumes |{''.join(f' {name}, cubic -> model (gain) |' for name in names)}")
    print(f"|---|---|---|{'---|' * len(names)}")
    values = {name: read_values(arguments.report / file, name) for file, columns in METRICS.items() for name in columns}
    for head, recipe in sorted({(head_of(volume), recipe) for volume, recipe in recipes.items()}):
        volumes = [volume for volume in recipes if (head_of(volume), recipes[volume]) == (head, recipe)]
        cells = [cell([values[name][volume] for volume in volumes], DECIMALS[name]) for name in names]
        print(f"| {head} | {recipe} | {len(volumes)} | {' | '.join(cells)} |")


def read_recipes(shards: str, split: str) -> dict[str, str]:
    """Return the recipe of each volume, by the volume's name."""
    opened = open_set(shards, AccessConfig()).split(split)
    recipes: dict[str, str] = {}
    for volume in group_volumes(opened):
        record = opened.record(volume.samples[0])
        recipes[str(volume.first).rpartition("-")[0]] = record["parameters"].get("recipe", "report")
    return recipes


def read_values(path: Path, name: str) -> dict[str, Value]:
    """Read the mean cubic and model value of a metric for each volume."""
    rows: dict[str, list[Value]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row[f"model_{name}"]:
                volume = row["volume"] if "volume" in row else row["key"].rpartition("-")[0]
                rows[volume].append((float(row[f"cubic_{name}"]), float(row[f"model_{name}"])))
    return {volume: mean(values) for volume, values in rows.items()}


def mean(values: Iterable[Value]) -> Value:
    """Return the mean cubic and the mean model value."""
    cubic, model = zip(*values, strict=True)
    return fmean(cubic), fmean(model)


def cell(values: list[Value], decimals: int) -> str:
    """Return the text of the means of several volumes."""
    cubic, model = mean(values)
    return f"{cubic:.{decimals}f} -> {model:.{decimals}f} ({model - cubic:+.{decimals}f})"


def head_of(volume: str) -> str:
    """Return the cohort and the subject of a volume, from its name COHORT-SUBJECT-KIND-VARIANT."""
    return volume.rsplit("-", 2)[0]


if __name__ == "__main__":
    main()
