"""The volumes of a split, one at a time: its slices stacked again, whatever the order in which they are stored."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.samplekey import SampleKey
from upfield.sharding.selection import VolumePair
from upfield.sharding.shardset import ShardSplit


@dataclass(frozen=True)
class StackedPair:
    """One pair of volumes, read."""

    keys: tuple[SampleKey, ...]
    """Of its slices, in anatomical order from left to right."""
    low: NDArray[np.float32]
    """`(X, 1 + 2*context, Y, Z)` in [0, 1]: the cubic interpolation of the scan, each slice with its neighbours."""
    high: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1]."""

    @property
    def name(self) -> str:
        """Name the volume as its keys do, without the slice."""
        return str(self.keys[0]).rpartition("-")[0]

    @property
    def cubic(self) -> NDArray[np.float32]:
        """The cubic interpolation of the scan, `(X, Y, Z)` in [0, 1]."""
        return np.ascontiguousarray(self.low[:, self.low.shape[1] // 2])


def read_pair(split: ShardSplit, pair: VolumePair) -> StackedPair:
    """Read all slices of a pair of volumes.

    Raises:
        ShardSetError: a shard is missing or truncated.
    """
    count = len(pair.samples)
    low, high = (np.empty((count, *shape), dtype=np.float16) for shape in (split.low_shape, split.high_shape))
    split.read_into(pair.samples, low, high)
    return StackedPair(pair.keys, low.astype(np.float32), high[:, 0].astype(np.float32))
