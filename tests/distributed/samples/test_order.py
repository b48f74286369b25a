"""The order of samples is a pure function of (seed, epoch)."""

import numpy as np
import pytest

from upfield.distributed.configuration import OptimConfig
from upfield.distributed.learning_rate import learning_rate
from upfield.distributed.samples.order import epoch_order, rank_share

SIZES = np.array([7, 3, 11, 5, 9])


def test_an_epoch_visits_every_sample_once() -> None:
    order = epoch_order(0, 0, SIZES, window_shards=2)
    assert sorted(order) == list(range(SIZES.sum()))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = epoch_order(0, 0, SIZES, 2)
    assert (first == epoch_order(0, 0, SIZES, 2)).all()
    assert (first != epoch_order(0, 1, SIZES, 2)).any()
    assert (first != epoch_order(1, 0, SIZES, 2)).any()


def test_a_window_holds_its_shards_together() -> None:
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    seen = shard_of[epoch_order(3, 0, SIZES, window_shards=1)]
    assert (np.diff(seen) != 0).sum() == len(SIZES) - 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_of_all_ranks_make_the_global_batch(world_size: int) -> None:
    order = epoch_order(0, 0, SIZES, 2)
    for step in range(len(order) // 8):
        shares = [rank_share(order, step, 8, rank, world_size) for rank in range(world_size)]
        assert (np.concatenate(shares) == order[8 * step : 8 * step + 8]).all()


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=4, final_lr=0.0)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_a_constant_rate_does_not_change() -> None:
    assert {learning_rate(OptimConfig(), step, 50) for step in range(50)} == {2e-4}
