"""Plan blocks of subjects, and the shards of each block, before any voxel is read.

A block is the unit of work: one worker reads its subjects, shuffles their samples together and writes its shards. The
plan determines the subjects and their order, so the bytes do not depend on the number or the speed of the workers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.building.generator import generator_for
from upfield.sharding.cohorts.subjects import SourceVolume, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.sample_key import SPLITS, Split


@dataclass(frozen=True)
class Block:
    """Subjects whose samples are packed together."""

    split: Split
    """The split that the block belongs to."""
    subjects: tuple[Subject[SourceVolume], ...]
    """The subjects of the block."""
    first_shard: int
    """Number of its first shard within the split."""
    num_shards: int
    """Planned number of its shards; fewer may be written if subjects turn out to be unusable."""

    @property
    def name(self) -> str:
        """Name of the block, unique in the set."""
        return f"{self.split}-{self.first_shard:06d}"

    def shard_sizes(self, samples: int) -> dict[str, int]:
        """Divide samples evenly over the block's shards: shard name, as in the manifest -> number of samples."""
        parts = min(self.num_shards, samples)
        small, extra = divmod(samples, max(parts, 1))
        return {f"{self.split}/{self.first_shard + i:06d}": small + (i < extra) for i in range(parts)}


def plan_blocks(
    subjects: list[Subject[SourceVolume]], config: ShardConfig, taken: Mapping[str, int] | None = None
) -> list[Block]:
    """Divide subjects into blocks and blocks into shards.

    Training subjects are first shuffled over all cohorts. Held-out ones keep their order, so that a reader can
    reassemble volumes slice by slice.

    Args:
        subjects: all subjects of all cohorts.
        config: seed, block and shard sizes, geometry.
        taken: first free shard number of each split; missing splits start at 0.
    """
    blocks: list[Block] = []
    for split in SPLITS:
        members = [subject for subject in subjects if subject.split == split and subject.units]
        if split == "train":
            members = [members[i] for i in generator_for(config.seed, "subjects").permutation(len(members))]
        first_shard = (taken or {}).get(split, 0)
        for start in range(0, len(members), config.subjects_per_block):
            chosen = tuple(members[start : start + config.subjects_per_block])
            samples = sum(len(subject.units) for subject in chosen) * config.geometry.high_shape[0]
            num_shards = math.ceil(samples / config.samples_per_shard)
            blocks.append(Block(split, chosen, first_shard, num_shards))
            first_shard += num_shards
    return blocks


def sample_order(block: Block, samples: int, seed: int) -> NDArray[np.int64]:
    """Return the order in which a block's samples are written to its shards.

    Sample `n` is slice `n % X` of unit `n // X`, where X is the number of sagittal slices.

    Returns:
        `(samples,)` int64: a permutation for training, ascending otherwise.
    """
    if block.split != "train":
        return np.arange(samples)
    return generator_for(seed, "samples", block.name).permutation(samples)
