"""A validation reads every sample once, each process a part of its own, whatever threads and downloads run ahead."""

from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import FaultyServer
from remote_reading import read_every_sample

from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.reader import Batch
from upfield.distributed.samples.splits import open_splits
from upfield.distributed.samples.validation_batches import StoredOrder, deal_parts, validation_loader
from upfield.sharding.shardset.shard_split import ShardSplit


def load(split: ShardSplit, rank: int, world_size: int, num_workers: int = 0) -> list[tuple[Batch, torch.Tensor]]:
    return list(validation_loader(split, 3, rank, world_size, num_workers, 2, pin_memory=False))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 16, 21])
def test_the_parts_of_all_ranks_are_the_split_in_stored_order(
    tiny_shards: Path, world_size: int, num_workers: int
) -> None:
    split = ShardSplit(tiny_shards, "val")
    ranks = [load(split, rank, world_size, num_workers) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert {len(batch.samples) for batches in ranks for batch, _ in batches} == {3}
    low = torch.cat([batch.low[own] for batches in ranks for batch, own in batches])
    seen = torch.cat([batch.samples[own] for batches in ranks for batch, own in batches])
    assert seen.tolist() == list(range(split.num_samples))
    assert low.equal(torch.cat([batch.low for batch in read_every_sample(split, 20)]))


def test_one_process_reads_as_before_and_fills_up_the_last_batch() -> None:
    assert deal_parts(7, 3, 0, 1).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert deal_parts(7, 2, 1, 2).tolist() == [[3, 4], [5, 6]]


def test_the_next_shard_is_downloaded_while_one_is_read() -> None:
    order = StoredOrder(np.arange(12).reshape(6, 2), np.array([0, 3, 6, 9, 12]))
    shards = [[int(window[0]) for window in order.windows_at(step)] for step in range(order.stop)]
    assert shards == [[0, 1], [0, 1], [1, 2], [2, 3], [2, 3], [3]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_rank_downloads_only_the_shards_of_its_part(
    http_store: FaultyServer, tmp_path: Path, num_workers: int
) -> None:
    def download(rank: int) -> set[str]:
        http_store.asked.clear()
        split, _ = open_splits(DataConfig(http_store.url, cache_dir=tmp_path / str(rank)))
        for _ in range(2):
            load(split, rank, 2, num_workers)
        assert set(http_store.asked.values()) == {1}
        return {name for name in http_store.asked if name.endswith(".tar")}

    first, second = download(0), download(1)
    assert len(first | second) == 7
    assert len(first & second) <= 1
