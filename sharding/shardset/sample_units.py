"""The units of a split: which pair of volumes each of its samples is a slice of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.sample_key import SampleKey, Unit
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class SampleUnits:
    """The units of a split, and the unit of each sample."""

    units: tuple[Unit, ...]
    """The units. Subject ids are written as in sample keys."""
    numbers: NDArray[np.int32]
    """`(samples,)` int32: number of each sample's unit in `units`."""


def sample_units(split: ShardSplit) -> SampleUnits:
    """Return the units of a split and the unit of each sample.

    Raises:
        ShardSetError: a key is not one that `upfield shard` writes.
    """
    positions: dict[str, int] = {}
    names = (split.key(sample).rpartition("-x")[0] for sample in range(split.num_samples))
    numbers = np.fromiter(
        (positions.setdefault(name, len(positions)) for name in names), dtype=np.int32, count=split.num_samples
    )
    return SampleUnits(tuple(_unit(split, name) for name in positions), numbers)


def _unit(split: ShardSplit, name: str) -> Unit:
    try:
        key = SampleKey.parse(f"{name}-x000")
    except ShardSetError as error:
        raise ShardSetError(f"{split.root}: {error}") from error
    return Unit(key.cohort, key.subject, "real" if key.kind == "real" else "synthetic", key.variant)
