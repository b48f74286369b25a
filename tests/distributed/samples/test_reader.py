"""Batches are the stored samples, the same for any number of processes and workers."""

import gc
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from upfield.common.errors import ShardSetError
from upfield.distributed.configuration import AugmentConfig, DataConfig, DegradeConfig, MixConfig
from upfield.distributed.gating_noise import draw_gating_noise
from upfield.distributed.samples.reader import (
    BatchPlan,
    BufferPool,
    TrainingBatches,
    count_readers,
    read_batch,
    training_loader,
)
from upfield.model.amir import AmirConfig
from upfield.sharding.shardset.shard_split import ShardSplit


@pytest.fixture(scope="module")
def split(tiny_shards: Path) -> ShardSplit:
    return ShardSplit(tiny_shards, "train")


def batches_of(split: ShardSplit, rank: int = 0, world_size: int = 1) -> TrainingBatches:
    return TrainingBatches(split, BatchPlan(0, 4, 2, AugmentConfig(), rank, world_size))


def test_a_batch_holds_the_samples_it_names(split: ShardSplit) -> None:
    batch = read_batch(split, [5, 0])
    alone = read_batch(split, [0])
    assert batch.low.shape == (2, *split.low_shape)
    assert torch.equal(batch.high[1], alone.high[0])
    assert batch.samples.tolist() == [5, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_yields_the_same_batches_for_any_number_of_workers(split: ShardSplit, num_workers: int) -> None:
    dataset = batches_of(split)
    steps = range(3, 3 + 2 * dataset.steps_per_epoch)
    loaded = list(training_loader(dataset, steps, num_workers, prefetch=2, pin_memory=False))
    assert [batch.samples.tolist() for batch in loaded] == [dataset.samples_at(step).tolist() for step in steps]
    for batch in loaded:
        alone = read_batch(split, batch.samples.tolist())
        assert torch.equal(batch.low, alone.low)
        assert torch.equal(batch.high, alone.high)


def test_a_loader_that_is_closed_early_leaves_no_threads_and_no_open_files(split: ShardSplit) -> None:
    def readers() -> int:
        return sum(thread.name.startswith("reader") for thread in threading.enumerate())

    split.close()
    gc.collect()  # This closes what earlier tests have left open.
    threads, files = readers(), len(os.listdir("/proc/self/fd"))
    loader = training_loader(batches_of(split), range(1000), num_workers=2, prefetch=4, pin_memory=False)
    next(loader)
    assert readers() == threads + 2
    del loader
    assert readers() == threads
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_ends_the_loader(tiny_shards: Path, tmp_path: Path, num_workers: int) -> None:
    root = shutil.copytree(tiny_shards, tmp_path / "shards")
    dataset = batches_of(ShardSplit(root, "train"))
    for tar in (root / "train").glob("*.tar"):
        os.truncate(tar, 9000)
    with pytest.raises(ShardSetError, match="truncated"):
        list(training_loader(dataset, range(dataset.steps_per_epoch), num_workers, prefetch=2, pin_memory=False))


def test_memory_is_reused_once_no_tensor_refers_to_it() -> None:
    memory = BufferPool()
    first, second = memory((2, 3)), memory((2, 3))
    part, address = first[1:], first.data_ptr()
    assert address != second.data_ptr()
    del first
    assert memory((2, 3)).data_ptr() != address
    del part
    assert address in {memory((2, 3)).data_ptr() for _ in range(2)}


def test_two_ranks_share_what_one_reads(split: ShardSplit) -> None:
    one, pair = batches_of(split), [batches_of(split, rank, 2) for rank in range(2)]
    for step in range(4):
        shared = np.concatenate([half.samples_at(step) for half in pair])
        assert shared.tolist() == one.samples_at(step).tolist()


def test_epoch_two_differs_from_epoch_one(split: ShardSplit) -> None:
    dataset = batches_of(split)
    first = [dataset.samples_at(step).tolist() for step in range(dataset.steps_per_epoch)]
    second = [dataset.samples_at(dataset.steps_per_epoch + step).tolist() for step in range(dataset.steps_per_epoch)]
    assert first != second


def test_a_sample_that_an_epoch_repeats_is_augmented_differently_and_equally_on_any_number_of_ranks(
    split: ShardSplit,
) -> None:
    mix = MixConfig(cohort={"ixi": 1.0})
    augment = AugmentConfig(shift_pixels=6, intensity_jitter=0.5, degrade=DegradeConfig(noise_std=(0, 0.1)))

    def read(rank: int, world_size: int) -> dict[tuple[int, int], torch.Tensor]:
        batches = TrainingBatches(split, BatchPlan(0, 4, 2, augment, rank, world_size, 2, mix))
        loaded = enumerate(training_loader(batches, range(batches.steps_per_epoch), 0, prefetch=1, pin_memory=False))
        return {(step, n): batch.low[i].clone() for step, batch in loaded for i, n in enumerate(batch.samples.tolist())}

    one, two = read(0, 1), read(0, 2) | read(1, 2)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    repeats = [image for (_, sample), image in one.items() if sample == next(iter(one))[1]]
    assert len(repeats) > 1
    assert not torch.equal(repeats[0], repeats[1])


def test_gating_noise_depends_only_on_seed_step_and_sample() -> None:
    config, device = AmirConfig.preset("tiny"), torch.device("cpu")
    together = draw_gating_noise(config, (24, 28), (0, 7), torch.tensor([3, 9]), device)
    alone = draw_gating_noise(config, (24, 28), (0, 7), torch.tensor([9]), device)
    later = draw_gating_noise(config, (24, 28), (0, 8), torch.tensor([9]), device)
    assert [level.shape for level in together] == [(2, 24 * 32, 4), (2, 12 * 16, 4), (2, 6 * 8, 4)]
    assert all(torch.equal(a[1], b[0]) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(alone[0], later[0])


def test_batches_are_read_in_advance_on_a_gpu_unless_configured_otherwise() -> None:
    assert [count_readers(DataConfig("set"), on_gpu) for on_gpu in (False, True)] == [0, 2]
    assert [count_readers(DataConfig("set", num_workers=1), on_gpu) for on_gpu in (False, True)] == [1, 1]
