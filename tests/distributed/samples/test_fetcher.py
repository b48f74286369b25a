"""The fetcher downloads the windows that a step needs and the next window, and no others."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import Case, cases

from upfield.common.errors import FetchError
from upfield.distributed.samples.fetcher import Fetcher, FetchSchedule

SMALL = Case(0, [8] * 6, batch_size=4, groups=1, window_shards=2)


def schedule_of(case: Case, stop: int, lookahead: int = 0, rank: int = 0, world_size: int = 1) -> FetchSchedule:
    order = case.order()
    return FetchSchedule(order, order.groups_of(rank, world_size), stop, lookahead)


def shards_at(schedule: FetchSchedule, step: int) -> set[int]:
    return {int(shard) for window in schedule.windows_at(step) for shard in window}


def test_the_next_window_is_fetched_while_this_one_is_consumed() -> None:
    schedule = schedule_of(SMALL, stop=24)
    held, changed = set[int](), threading.Condition()

    def hold(shard: int, _: threading.Event) -> int:
        with changed:
            held.add(shard)
            changed.notify_all()
        return os.open("/dev/null", os.O_RDONLY)

    fetcher = Fetcher(hold, schedule)
    fetcher.start(0)
    expected = set[int]()
    for step in (0, 4, 8, 12):
        fetcher.advance(step)
        expected |= shards_at(schedule, step)
        with changed:
            assert changed.wait_for(lambda: held == expected, timeout=10)  # noqa: B023
    fetcher.close()


def test_a_shard_of_the_next_window_that_stays_bad_is_reported_at_the_next_step() -> None:
    schedule, refused = schedule_of(SMALL, stop=24), threading.Event()
    bad = int(schedule.windows_at(0)[1][0])

    def hold(shard: int, _: threading.Event) -> int:
        if shard == bad:
            refused.set()
            raise FetchError("lost")
        return os.open("/dev/null", os.O_RDONLY)

    fetcher = Fetcher(hold, schedule)
    fetcher.start(0)
    refused.wait()
    fetcher.close()
    with pytest.raises(FetchError, match="lost"):
        fetcher.advance(1)


@pytest.mark.parametrize(("window_shards", "lookahead"), [(1, 0), (2, 0), (2, 5), (9, 3)])
def test_the_schedule_covers_the_shards_in_use_and_one_more_window(window_shards: int, lookahead: int) -> None:
    case, stop = Case(5, [7, 3, 11, 5, 9], 4, 1, window_shards), 22
    schedule = schedule_of(case, stop, lookahead)
    if not lookahead:
        assert all(len(schedule.windows_at(step)) <= 3 for step in range(stop))
    assert len(schedule.windows_at(stop - 1)) <= 2


def test_the_windows_of_the_step_come_first() -> None:
    case = Case(0, [8] * 8, batch_size=4, groups=2, window_shards=2)
    read = case.shard_of[case.order().share(0, 0, 1)]
    assert set(np.concatenate(schedule_of(case, stop=9).windows_at(0)[:2])) >= set(read)


@pytest.mark.generated
@given(case=cases() | cases(mixed=True), lookahead=st.integers(0, 6), data=st.data())
def test_a_rank_has_the_shards_of_its_next_batches_and_no_shard_that_it_does_not_read(
    case: Case, lookahead: int, data: st.DataObject
) -> None:
    order = case.order()
    world_size = data.draw(st.sampled_from([number for number in range(1, 13) if case.batch_size % number == 0]))
    rank, num_steps = data.draw(st.integers(0, world_size - 1)), order.steps_per_epoch
    stop = min(2 * num_steps, 40)
    schedule = FetchSchedule(order, order.groups_of(rank, world_size), stop, lookahead)
    read = [set(case.shard_of[order.share(step, rank, world_size)]) for step in range(stop)]
    own = {shard for stream in order.streams_of(order.groups_of(rank, world_size)) for shard in stream.piece.shards}
    for step in range(stop):
        assert set.union(*read[step : step + lookahead + 1]) <= shards_at(schedule, step) <= own
        if case.groups % world_size == 0:
            # A process that shares no group with another one reads from each of its windows.
            assert all(set.union(*read) & set(window) for window in schedule.windows_at(step))


@pytest.mark.generated
@given(case=cases(), data=st.data())
def test_the_nodes_download_the_set_once_and_the_shards_that_are_cut(case: Case, data: st.DataObject) -> None:
    nodes = data.draw(st.sampled_from([number for number in range(1, 13) if case.groups % number == 0]))
    num_steps = case.order().steps_per_epoch

    def download(node: int, epoch: int) -> set[int]:
        schedule = schedule_of(case, (epoch + 1) * num_steps, rank=node, world_size=nodes)
        return set.union(*(shards_at(schedule, step) for step in range(epoch * num_steps, (epoch + 1) * num_steps)))

    first = [download(node, 0) for node in range(nodes)]
    assert sum(map(len, first)) <= len(case.sizes) + nodes - 1
    # The last samples of an epoch may not fill a batch, so the only shard with them may not be needed.
    assert sum(case.sizes[shard] for shard in set(range(len(case.sizes))) - set.union(*first)) < case.batch_size
    # A later epoch finds its shards in the cache, but for those of which the first epoch left a tail.
    tail = sum(case.sizes) - num_steps * case.batch_size
    assert sum(samples_of(case, node, nodes, download(node, 1) - first[node]) for node in range(nodes)) <= tail


def samples_of(case: Case, node: int, nodes: int, shards: set[int]) -> int:
    """Count the samples of some shards in the groups of a node."""
    order = case.order()
    pieces = [stream.piece for stream in order.streams_of(order.groups_of(node, nodes))]
    return sum(int(piece.sizes[np.isin(piece.shards, list(shards))].sum()) for piece in pieces)


def test_only_the_shards_with_samples_of_a_class_are_downloaded() -> None:
    case = Case(0, [2] * 40, 8, 2, 2, (1.0,))
    with_samples = set(case.shard_of[case.classes == 0].tolist())
    schedule = schedule_of(case, stop=10)
    assert set.union(*(shards_at(schedule, step) for step in range(10))) == with_samples
    assert len(with_samples) < 40
