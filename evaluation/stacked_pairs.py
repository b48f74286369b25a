"""Read the volumes of a split one at a time, and stack their slices in anatomical order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.slices import neighbour_indices
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.split_reader import read_whole
from upfield.sharding.shardset.volume_pairs import VolumePair


@dataclass(frozen=True)
class StackedPair:
    """The voxels of a low-field volume and its high-field target."""

    keys: tuple[SampleKey, ...]
    """Keys of the slices, in anatomical order from left to right."""
    low: NDArray[np.float32]
    """`(X, 1 + 2*context, Y, Z)` in [0, 1]; the cubic interpolation of the scan, each slice with its neighbours."""
    high: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1]."""

    @property
    def name(self) -> str:
        """Common part of the sample keys, without the slice."""
        return str(self.keys[0]).rpartition("-")[0]

    @property
    def cubic(self) -> NDArray[np.float32]:
        """The cubic interpolation of the scan, `(X, Y, Z)` in [0, 1]."""
        return np.ascontiguousarray(self.low[:, self.low.shape[1] // 2])

    def with_neighbours(self, context: int, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return the input of a model: slices of the scan with neighbours, of which the set may store another number.

        Args:
            context: neighbouring slices that the model takes on each side.
            rows: the slices along X.

        Returns:
            `(N, 1 + 2*context, Y, Z)` in [0, 1].
        """
        if self.low.shape[1] == 1 + 2 * context:
            return self.low[rows]
        count = len(self.low)
        return self.cubic[neighbour_indices(np.arange(count)[rows], count, context)]


def read_pair(split: ShardSplit, pair: VolumePair) -> StackedPair:
    """Read all slices of a pair of volumes.

    Args:
        split: the split that holds the pair.
        pair: sample numbers and keys of its slices.

    Raises:
        ShardSetError: a shard is missing or truncated, slices are missing, or a value is outside 0..1.
    """
    low, high = read_whole(split, pair)
    return StackedPair(pair.keys, low.astype(np.float32), high[:, 0].astype(np.float32))
