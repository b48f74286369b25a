"""The volumes of a split, one at a time: its slices stacked again, whatever the order in which they are stored."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import ShardSetError
from upfield.common.files import atomic_path, hash_file
from upfield.common.progress import track
from upfield.imaging.nifti_writer import write_volume
from upfield.imaging.volume import Volume
from upfield.sharding.previews.selection import VolumePair
from upfield.sharding.shardset.reading import ShardSplit
from upfield.sharding.shardset.samplekey import SampleKey


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
        ShardSetError: a shard is missing or truncated, or the volume lacks slices or holds what no volume does.
    """
    count = len(pair.samples)
    expected = split.manifest.tree["config"]["geometry"]["high_shape"][0]
    if [key.x for key in pair.keys] != list(range(expected)):
        raise ShardSetError(
            f"{split.root}: {pair.first}: expected {expected} slices of the volume, found {count}, or others "
            "than these; run upfield verify"
        )
    low, high = (np.empty((count, *shape), dtype=np.float16) for shape in (split.low_shape, split.high_shape))
    split.read_into(pair.samples, low, high)
    if not all(((array >= 0) & (array <= 1)).all() for array in (low, high)):
        raise ShardSetError(
            f"{split.root}: {pair.first}: expected values in 0..1, found others in the volume; a shard is damaged, run "
            "upfield verify"
        )
    return StackedPair(pair.keys, low.astype(np.float32), high[:, 0].astype(np.float32))


def refuse_changed_shards(split: ShardSplit) -> None:
    """Compare each shard of a split with the hash that the manifest has of it.

    Raises:
        ShardSetError: one is missing or another.
    """
    for entry in track(split.entries, "shards checked", len(split.entries)):
        path = Path(split.root) / f"{entry.name}.tar"
        if not path.is_file():
            raise ShardSetError(f"{path}: expected a shard, found none; run upfield verify")
        if (found := hash_file(path)) != entry.sha256:
            raise ShardSetError(
                f"{path}: expected sha256 {entry.sha256} as the manifest says, found {found}: it is damaged or was "
                "changed; run upfield verify, then build it again"
            )


def save_volume(path: Path, voxels: NDArray[np.float32], spacing_mm: tuple[float, float, float]) -> None:
    """Write `(X, Y, Z)` as NIfTI, RAS+, on the set's grid around the origin; the set does not hold the scan's place."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(voxels.shape) - 1) / 2
    with atomic_path(path) as temporary:
        write_volume(Volume(voxels, affine), temporary)
