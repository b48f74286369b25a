"""The units of a split: which pair of volumes each of its samples is a slice of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.shardset.sample_key import Unit
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class SampleUnits:
    """The units of a split, and the unit of each sample."""

    units: tuple[Unit, ...]
    """The units. Subject ids are written as in sample keys."""
    numbers: NDArray[np.uint32]
    """`(samples,)` uint32: number of each sample's unit in `units`."""


def sample_units(split: ShardSplit) -> SampleUnits:
    """Return the units of a split and the unit of each sample."""
    units = (
        Unit(cohort, subject, "real" if kind == "real" else "synthetic", variant)
        for cohort, subject, kind, variant in split.index.units
    )
    return SampleUnits(tuple(units), split.index.unit_numbers)
