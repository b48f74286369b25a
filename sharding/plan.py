"""What goes where, decided before any voxel is read: blocks of subjects, and the shards that each block fills.

A block is the unit of work: one worker reads its subjects, shuffles their samples together and writes its shards alone.
Since membership and order follow from the plan, the bytes do not depend on how many workers there are or who is first.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.cohort import SPLITS, Split, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.intensity import generator_for


@dataclass(frozen=True)
class Block:
    """Subjects whose samples are packed together."""

    split: Split
    """The split that the block belongs to."""
    number: int
    """Number of the block in its split."""
    subjects: tuple[Subject, ...]
    """Its subjects."""
    first_shard: int
    """Number of its first shard in the split."""
    shard_sizes: tuple[int, ...]
    """Samples in each of its shards."""

    @property
    def shard_names(self) -> list[str]:
        """Names of its shards below the set's folder, without suffix."""
        return [f"{self.split}/{self.first_shard + i:06d}" for i in range(len(self.shard_sizes))]


def plan_blocks(subjects: list[Subject], config: ShardConfig) -> list[Block]:
    """Divide subjects into blocks and blocks into shards.

    Training subjects are shuffled over cohorts first; held-out ones keep their order, so that a reader can put volumes
    together again slice by slice.

    Args:
        subjects: all subjects of all cohorts.
        config: seed, block and shard sizes, geometry.
    """
    blocks: list[Block] = []
    for split in SPLITS:
        members = [subject for subject in subjects if subject.split == split and subject.units]
        if split == "train":
            members = [members[i] for i in generator_for(config.seed, "subjects").permutation(len(members))]
        first_shard = 0
        for number, start in enumerate(range(0, len(members), config.subjects_per_block)):
            chosen = tuple(members[start : start + config.subjects_per_block])
            samples = sum(len(subject.units) for subject in chosen) * config.geometry.high_shape[0]
            sizes = _even_parts(samples, math.ceil(samples / config.samples_per_shard))
            blocks.append(Block(split, number, chosen, first_shard, sizes))
            first_shard += len(sizes)
    return blocks


def sample_order(block: Block, config: ShardConfig) -> NDArray[np.int64]:
    """Give the order of a block's samples.

    Sample `n` is slice `n % X` of unit `n // X`, X the number of sagittal slices.

    Returns:
        `(samples,)` int64: a permutation for training, ascending otherwise.
    """
    count = sum(block.shard_sizes)
    if block.split != "train":
        return np.arange(count)
    return generator_for(config.seed, "samples", block.number).permutation(count)


def _even_parts(total: int, parts: int) -> tuple[int, ...]:
    """Split `total` into `parts` that differ by one at most: no shard is a crumb."""
    small, extra = divmod(total, parts)
    return (small + 1,) * extra + (small,) * (parts - extra)
