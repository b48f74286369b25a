"""The order of samples is a pure function of seed, epoch, groups and mix."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from orders import Case, cases, global_batches

from upfield.distributed.configuration import OptimConfig
from upfield.distributed.learning_rate import learning_rate

SIZES = [7, 3, 11, 5, 9]
SMALL = Case(0, SIZES, 4, 2, 2)


@pytest.mark.parametrize(
    ("seed", "epoch", "window_shards", "expected"),
    [(0, 0, 2, "95875d51d1521162"), (5, 3, 16, "8e3a7004308fc264"), (7, 1, 3, "a2f9d2e2d19faeee")],
)
def test_one_group_has_the_order_of_earlier_versions(seed: int, epoch: int, window_shards: int, expected: str) -> None:
    order = Case(seed, [7, 3, 11, 5, 9, 1, 12, 8, 6, 4], 1, 1, window_shards).order()
    samples = global_batches(order, epoch).ravel()
    assert hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16] == expected


@pytest.mark.parametrize(("shares", "expected"), [((), "a7143295a9f82b96"), ((0.3, 0.7), "59e92b9c6daf06cd")])
def test_groups_and_mixes_have_the_order_of_earlier_checkpoints(shares: tuple[float, ...], expected: str) -> None:
    order = Case(5, [7, 3, 11, 5, 9, 1, 12, 8, 6, 4], 4, 2, 3, shares).order()
    samples = global_batches(order, 1).ravel()
    assert hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16] == expected


@pytest.mark.generated
@given(case=cases())
def test_an_epoch_visits_each_sample_once_up_to_a_tail_shorter_than_a_batch(case: Case) -> None:
    seen = global_batches(case.order(), epoch=1).ravel()
    assert len(set(seen)) == len(seen) == sum(case.sizes) // case.batch_size * case.batch_size
    assert set(seen) <= set(range(sum(case.sizes)))


@pytest.mark.generated
@given(case=cases())
def test_each_batch_takes_equally_many_samples_from_each_group(case: Case) -> None:
    order = case.order()
    members = [set(order.streams[group, 0].order(0, 0)) for group in range(case.groups)]
    assert max(map(len, members)) - min(map(len, members)) <= 1
    assert sum(map(len, members)) == len(set.union(*members))
    for batch in global_batches(order, epoch=2):
        counts = [len(members[group] & set(batch)) for group in range(case.groups)]
        assert counts == [case.batch_size // case.groups] * case.groups


@pytest.mark.generated
@given(case=cases())
def test_at_most_one_shard_fewer_than_groups_belongs_to_two_groups(case: Case) -> None:
    streams = case.order().streams.values()
    assert sum(len(stream.piece.shards) for stream in streams) <= len(case.sizes) + case.groups - 1


@pytest.mark.generated
@given(case=cases(), mixed=cases(mixed=True))
def test_the_shares_of_all_ranks_make_the_global_batch_for_any_number_of_ranks(case: Case, mixed: Case) -> None:
    for order in (case.order(), mixed.order()):
        for world_size in (number for number in range(2, 13) if order.batch_size % number == 0):
            # Each rank computes only its own groups. Steps out of order give the same samples.
            for step in (order.steps_per_epoch, 0):
                shares = [order.share(step, rank, world_size) for rank in range(world_size)]
                assert np.concatenate(shares).tolist() == order.share(step, 0, 1).tolist()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_no_sample_is_left_out_in_each_epoch(groups: int) -> None:
    order = Case(0, SIZES, 8, groups, 2).order()
    seen = set(np.concatenate([global_batches(order, epoch).ravel() for epoch in range(30)]))
    assert seen == set(range(sum(SIZES)))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    order, other = SMALL.order(), Case(1, SIZES, 4, 2, 2).order()
    first = global_batches(order, 0)
    assert (first == global_batches(SMALL.order(), 0)).all()
    assert (first != global_batches(order, 1)).any()
    assert (first != global_batches(other, 0)).any()


def test_a_shard_stays_in_its_group_in_all_epochs() -> None:
    order = SMALL.order()
    shards = [
        {shard for epoch in range(3) for shard in SMALL.shard_of[stream.order(epoch, 0)]}
        for stream in order.streams.values()
    ]
    assert len(shards[0] & shards[1]) <= 1


def test_a_window_holds_its_shards_together() -> None:
    case = Case(3, SIZES, 1, 1, 1)
    seen = case.shard_of[global_batches(case.order(), 0).ravel()]
    assert (np.diff(seen) != 0).sum() == len(SIZES) - 1


def test_the_window_is_divided_among_the_groups() -> None:
    windows = [Case(0, SIZES, 8, groups, 5).order().window_shards for groups in (1, 2, 4, 8)]
    assert windows == [5, 3, 2, 1]


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=4, final_lr=0.0)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_a_constant_rate_does_not_change() -> None:
    assert {learning_rate(OptimConfig(), step, 50) for step in range(50)} == {2e-4}
