"""Group the samples of a split by the pair of volumes that they belong to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.slices import neighbour_indices
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class VolumePair:
    """All samples of one pair of volumes."""

    keys: tuple[SampleKey, ...]
    """Keys in the order of the slices."""
    samples: tuple[int, ...]
    """Numbers of the samples in the split."""

    @property
    def first(self) -> SampleKey:
        """Key of the first slice; the other keys differ only in `x`."""
        return self.keys[0]


def group_volumes(split: ShardSplit) -> list[VolumePair]:
    """Return every pair of volumes of a split, sorted by key; the order of the stored slices does not matter."""
    index = split.index
    in_order = np.lexsort((index.slices, index.unit_numbers))
    ends = np.cumsum(np.bincount(index.unit_numbers, minlength=len(index.units)))
    members = np.split(in_order, ends[:-1])
    return [
        VolumePair(tuple(map(index.key, members[number].tolist())), tuple(members[number].tolist()))
        for number in sorted(range(len(index.units)), key=index.units.__getitem__)
    ]


def find_neighbours(split: ShardSplit, samples: list[int], context: int) -> NDArray[np.int64]:
    """Return the sample numbers of slices and their neighbours in the volume, `(N, 1 + 2*context)`.

    Args:
        split: the split that holds the samples.
        samples: N sample numbers.
        context: neighbouring slices on each side. The first and last slices stand in for missing neighbours.
    """
    index, rows = split.index, []
    for sample in samples:
        volume = np.flatnonzero(index.unit_numbers == index.unit_numbers[sample])
        volume = volume[np.argsort(index.slices[volume])]
        place = np.flatnonzero(volume == sample)
        rows.append(volume[neighbour_indices(place, len(volume), context)[0]])
    return np.array(rows, dtype=np.int64)


def read_keys(split: ShardSplit) -> list[SampleKey]:
    """Return the key of every sample of a split, in the order they are stored."""
    return [split.index.key(sample) for sample in range(split.num_samples)]
