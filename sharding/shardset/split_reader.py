"""One split of a shard set as Python users read it: pairs of slices, and pairs of whole volumes, as arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair, group_volumes

# Samples of a remote set that are requested at once, if they are downloaded one by one.
REQUESTED = 64


@dataclass(frozen=True)
class SlicePair:
    """A sagittal slice in both fields.

    Examples:
        >>> import upfield
        >>> pair = upfield.open_shards("shards").split("test")[0]
        >>> pair.low.shape, repr(pair).startswith("SlicePair(")
        ((1, 24, 28), True)
        >>> pair.record["subject"], pair.record["kind"]
        ('sub-02', 'real')
    """

    key: str
    """Key of the sample, `cohort-subject-kind-variant-x090`."""
    low: NDArray[np.float32]
    """`(1 + 2*context, Y, Z)` in [0, 1]: the low field, interpolated to the high-field grid, with its neighbours."""
    high: NDArray[np.float32]
    """`(1, Y, Z)` in [0, 1]: the high field."""
    record: dict[str, Any]
    """Content of `KEY.json`: cohort, subject, kind (`real` or `synthetic`), variant, slice, and how the low field was
    made."""

    def __repr__(self) -> str:
        """Return the key and the shapes of the slices."""
        return f"SlicePair({self.key}: low {self.low.shape}, high {self.high.shape})"


@dataclass(frozen=True)
class PairedVolume:
    """A whole volume in both fields, on the high-field grid of its set, in RAS+ order.

    Examples:
        >>> import upfield
        >>> volume = next(upfield.open_shards("shards").split("test").volumes())
        >>> volume.subject, volume.low.shape == volume.high.shape
        ('sub-02', True)
    """

    name: str
    """Common part of the keys of its slices, `cohort-subject-kind-variant`."""
    cohort: str
    """Name of the cohort."""
    subject: str
    """Id of the subject."""
    kind: str
    """`real`, or `synthetic` if the low field was computed from the high field."""
    variant: int
    """Number of the synthetic low field; 0 for a real one."""
    low: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1]: the low field, interpolated to the high-field grid. Models are compared with it."""
    high: NDArray[np.float32]
    """`(X, Y, Z)` in [0, 1]: the high field."""
    spacing_mm: tuple[float, float, float]
    """Voxel size along each axis, in mm."""

    def __repr__(self) -> str:
        """Return the name and the shape of the volume."""
        return f"PairedVolume({self.name}: {self.low.shape})"


class SplitReader(ShardSplit):
    """One split of a shard set.

    A split has a length, and `split[number]` reads one pair of slices, so a split can be the dataset of a PyTorch
    `DataLoader`.

    Examples:
        >>> import upfield
        >>> split = upfield.open_shards("shards").split("test")
        >>> split, len(split)
        (SplitReader(shards: 20 test), 20)
        >>> pair = split[0]
        >>> pair.low.shape, pair.high.shape, pair.record["kind"]
        ((1, 24, 28), (1, 24, 28), 'real')
    """

    def __repr__(self) -> str:
        """Return the place of the set, the number of pairs of slices and the name of the split."""
        return f"SplitReader({self.root}: {self.num_samples} {self.split})"

    def __len__(self) -> int:
        """Return the number of pairs of slices."""
        return self.num_samples

    def __getitem__(self, number: int) -> SlicePair:
        """Read a pair of slices by its number, from 0, in the order in which the set stores them.

        Raises:
            IndexError: there is no such pair.
            ShardSetError: a shard is missing or damaged.
        """
        if not -self.num_samples <= number < self.num_samples:
            raise IndexError(
                f"{self.root}: split {self.split} has {self.num_samples} pairs, so there is no pair {number}."
            )
        number %= self.num_samples
        low, high = self.read_checked([number])
        return SlicePair(self.key(number), low[0].astype(np.float32), high[0].astype(np.float32), self.record(number))

    def slices(self) -> Iterator[SlicePair]:
        """Read all pairs of slices, in the order in which the set stores them: shuffled over subjects.

        Yields:
            Pairs with `key`, `low` `(1 + 2*context, Y, Z)` and `high` `(1, Y, Z)` float32 in [0, 1], and `record`.

        Raises:
            ShardSetError: a shard is missing or damaged.
            FetchError: a shard could not be downloaded.

        Examples:
            >>> import upfield
            >>> split = upfield.open_shards("shards").split("test")
            >>> pairs = list(split.slices())
            >>> pairs[0].low.shape, pairs[0].low.dtype
            ((1, 24, 28), dtype('float32'))
            >>> sorted(pair.key for pair in pairs)[0]
            'real-sub-02-real-0-x000'
        """
        for start in range(0, self.num_samples, REQUESTED):
            numbers = range(start, min(start + REQUESTED, self.num_samples))
            self.request(numbers)
            for number in numbers:
                yield self[number]

    def volumes(self) -> Iterator[PairedVolume]:
        """Read all pairs of whole volumes, one at a time, sorted by cohort and subject.

        Yields:
            Volumes with `name`, `low` and `high` `(X, Y, Z)` float32 in [0, 1], in RAS+ order, and `spacing_mm`.

        Raises:
            ShardSetError: a shard is missing or damaged, or slices of a volume are missing.
            FetchError: a shard could not be downloaded.

        Examples:
            >>> import upfield
            >>> split = upfield.open_shards("shards").split("test")
            >>> for volume in split.volumes():
            ...     print(volume.name, volume.high.shape, volume.spacing_mm)
            real-sub-02-real-0 (20, 24, 28) (1.0, 1.0, 1.0)
        """
        first, second, third = self.manifest.geometry["high_spacing_mm"]
        for pair in group_volumes(self):
            key = pair.first
            low, high = read_whole(self, pair)
            yield PairedVolume(
                name=str(key).rpartition("-")[0],
                cohort=key.cohort,
                subject=key.subject,
                kind=key.kind,
                variant=key.variant,
                low=low[:, low.shape[1] // 2].astype(np.float32),
                high=high[:, 0].astype(np.float32),
                spacing_mm=(float(first), float(second), float(third)),
            )


def read_whole(split: ShardSplit, pair: VolumePair) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Read all slices of a pair of volumes, from left to right.

    Args:
        split: the split that holds the pair.
        pair: sample numbers and keys of its slices.

    Returns:
        The low field `(X, 1 + 2*context, Y, Z)` and the high field `(X, 1, Y, Z)`, in [0, 1].

    Raises:
        ShardSetError: a shard is missing or truncated, slices are missing, or a value is outside 0..1.
    """
    count = len(pair.samples)
    expected = split.manifest.geometry["high_shape"][0]
    if [key.x for key in pair.keys] != list(range(expected)):
        raise ShardSetError(
            f"{split.root}: {pair.first}: expected {expected} slices numbered from 0, found {count} numbered "
            f"{pair.keys[0].x} to {pair.keys[-1].x}. Run upfield verify."
        )
    return split.read_checked(pair.samples)
