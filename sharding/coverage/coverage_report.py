"""Measure scans and synthetic volumes, and report what the synthetic volumes cover: tables, JSON and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.drawing import expect_matplotlib
from upfield.common.errors import InputError
from upfield.common.files import check_writable_file, write_bytes, write_json
from upfield.common.progress import track
from upfield.sharding.configuration import AuditConfig, GeometryConfig
from upfield.sharding.coverage.comparison import LEAST_VOLUMES, Distribution, ScanCoverage, compare, matching
from upfield.sharding.coverage.coverage_tables import print_coverage
from upfield.sharding.coverage.measures import MEASURES, Values, measure_volume
from upfield.sharding.coverage.picture import AuditedScan, Thumbnail, draw_picture
from upfield.sharding.coverage.volumes import Scan, choose_synthetic, read_low, read_scan
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.shard_split import ShardSplit

MAX_THUMBNAILS = 8


@dataclass(frozen=True)
class SyntheticSample:
    """The measured synthetic volumes of a set."""

    distributions: list[Distribution]
    """One for each recipe and contrast."""
    thumbnails: list[Thumbnail]
    """Slices of some of them."""


def write_report(config: AuditConfig) -> None:
    """Measure everything, print the tables, and write JSON and picture.

    Raises:
        InputError: the output cannot be written, a scan cannot be used, or the set has too few synthetic volumes.
        ShardSetError: there is no complete shard set, or it is damaged.
        FetchError: a shard could not be downloaded.
    """
    picture = config.out.with_suffix(".png")
    _check_out(config)
    split = open_set(config.shards, config).split(config.split)
    geometry = GeometryConfig.from_tree(split.manifest.geometry)
    spacing_mm = np.array(geometry.high_spacing_mm)
    scans = _tell_apart(config.scans, [read_scan(path, geometry) for path in config.scans])
    measured = [measure_volume(scan.low, spacing_mm) for scan in scans]
    synthetic = _measure_synthetic(split, config.volumes, spacing_mm)
    tree = split.manifest.tree["config"]
    audited = [
        AuditedScan(
            replace(scan, low=scan.low[len(scan.low) // 2][None]),
            [compare(values, each, tree) for each in matching(scan.contrast, synthetic.distributions)],
        )
        for scan, values in zip(scans, measured, strict=True)
    ]
    num_measured = sum(len(each.volumes) for each in synthetic.distributions)
    print_coverage(audited, synthetic.distributions, is_limited=num_measured >= config.volumes)
    write_json(config.out, _to_tree(config, split, synthetic.distributions, audited))
    write_bytes(picture, draw_picture(audited, synthetic.distributions, synthetic.thumbnails))
    print(f"\n{config.out} and {picture.name} hold all measures.")


def _tell_apart(paths: Sequence[Path], scans: Sequence[Scan]) -> list[Scan]:
    """Name scans whose files have the same name by their path."""
    names = [scan.name for scan in scans]
    return [
        replace(scan, name=str(path)) if names.count(scan.name) > 1 else scan
        for path, scan in zip(paths, scans, strict=True)
    ]


def _check_out(config: AuditConfig) -> None:
    """Refuse an output that cannot be written, before the work."""
    check_writable_file(config.out, "--out", [".json"])
    check_writable_file(config.out.with_suffix(".png"), "--out")
    expect_matplotlib()


def _measure_synthetic(split: ShardSplit, num_volumes: int, spacing_mm: NDArray[np.float64]) -> SyntheticSample:
    """Measure synthetic volumes of a split, grouped by recipe and contrast.

    Args:
        split: the split.
        num_volumes: most volumes to measure.
        spacing_mm: `(3,)`, voxel size.
    """
    pairs = choose_synthetic(split, num_volumes)
    if len(pairs) < LEAST_VOLUMES:
        raise InputError(
            f"{split.root}: expected at least {LEAST_VOLUMES} complete synthetic low-field volumes in split "
            f"{split.split}, found {len(pairs)}. Build a set with `synthetic` variants, or choose another --split."
        )
    contrasts = split.manifest.tree.get("contrasts", {})
    groups: dict[tuple[str, str | None], list[Values]] = {}
    thumbnails: list[Thumbnail] = []
    for pair in track(pairs, "volumes", len(pairs)):
        recipe = split.record(pair.samples[0])["parameters"].get("recipe", "report")
        low = read_low(split, pair)
        groups.setdefault((recipe, contrasts.get(pair.first.cohort)), []).append(measure_volume(low, spacing_mm))
        if len(thumbnails) < MAX_THUMBNAILS:
            thumbnails.append(
                Thumbnail(f"{pair.first.subject}-{pair.first.variant}, {recipe}", low[len(low) // 2].copy())
            )
    distributions = [Distribution(*name, volumes) for name, volumes in sorted(groups.items(), key=str)]
    if all(len(each.volumes) < LEAST_VOLUMES for each in distributions):
        raise InputError(
            f"{split.root}: expected at least {LEAST_VOLUMES} volumes of one recipe and contrast among {len(pairs)}. "
            "Raise --volumes, or build a set with more `synthetic` variants."
        )
    return SyntheticSample(distributions, thumbnails)


def _to_tree(
    config: AuditConfig, split: ShardSplit, distributions: Sequence[Distribution], audited: Sequence[AuditedScan]
) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "shards": str(split.root),
        "data_sha256": split.manifest.data_sha256,
        "split": config.split,
        "measures": {measure.name: measure.title for measure in MEASURES},
        "synthetic": [
            {"recipe": each.recipe, "contrast": each.contrast, "volumes": [dict(values) for values in each.volumes]}
            for each in distributions
        ],
        "scans": [
            {
                "scan": item.scan.name,
                "contrast": item.scan.contrast,
                "doubt": item.scan.doubt,
                "coverage": [_coverage_tree(coverage) for coverage in item.coverages],
            }
            for item in audited
        ],
    }


def _coverage_tree(coverage: ScanCoverage) -> dict[str, Any]:
    measures = {
        each.measure.name: {
            "value": each.value,
            "limits": None if each.limits is None else list(each.limits),
            "percentile": each.percentile,
            "inside": each.is_inside,
            "key": each.advice and each.advice.key,
            "change": each.advice and each.advice.change,
        }
        for each in coverage.measures
    }
    return {
        "recipe": coverage.distribution.recipe,
        "contrast": coverage.distribution.contrast,
        "num_volumes": len(coverage.distribution.volumes),
        "num_inside": coverage.count(True),
        "num_outside": coverage.count(False),
        "measures": measures,
    }
