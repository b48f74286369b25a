"""A mix has its shares in each batch and in each part of an epoch that begins with its first batch."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from orders import Case, cases, global_batches

from upfield.distributed.samples.mixture import count_classes


@pytest.mark.generated
@given(weights=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any), batch_size=st.integers(1, 20))
@example(weights=[5, 25, 4, 20, 26], batch_size=9)
def test_the_numbers_in_each_batch_and_in_all_batches_so_far_are_within_one_of_their_share(
    weights: list[int], batch_size: int
) -> None:
    shares, steps = np.array(weights) / sum(weights), 60
    counts = count_classes(shares.tolist(), batch_size, steps)
    assert (counts.sum(axis=1) == batch_size).all()
    assert (np.abs(counts - shares * batch_size) < 1).all()
    so_far = np.arange(1, steps + 1)[:, None] * batch_size * shares
    assert (np.abs(counts.cumsum(axis=0) - so_far) < 1).all()


@pytest.mark.generated
@given(case=cases(mixed=True))
def test_a_mix_has_its_shares_in_each_batch_or_in_the_epoch(case: Case) -> None:
    batches = case.classes[global_batches(case.order(), epoch=3)]
    parts = [batches] if case.per == "epoch" else [*batches, *(batches[:end] for end in range(1, len(batches) + 1))]
    for part in parts:
        for number, share in enumerate(case.shares):
            assert abs(np.count_nonzero(part == number) - share * part.size) < 1


@pytest.mark.generated
@given(case=cases(mixed=True))
def test_a_class_is_visited_evenly_in_each_group(case: Case) -> None:
    order = case.order()
    batches = global_batches(order, epoch=1).reshape(order.steps_per_epoch, case.groups, -1)
    for (group, number), stream in order.streams.items():
        seen = batches[:, group][case.classes[batches[:, group]] == number]
        assert set(seen) <= set(stream.order(0, 0))
        counts = np.array([np.count_nonzero(seen == sample) for sample in stream.order(0, 0)])
        assert counts.max() - counts.min() <= 1


def test_the_classes_come_in_another_order_in_each_batch_and_epoch() -> None:
    case = Case(0, [40, 40], 8, 2, 2, (0.5, 0.5))
    first, second = (case.order().positions(epoch).classes for epoch in (0, 1))
    assert len({tuple(row) for row in first}) > 5
    assert (first != second).any()


def test_a_small_class_is_repeated_in_another_order_each_time() -> None:
    order = Case(0, [40, 40], 8, 1, 2, (0.5, 0.5)).order()
    stream = order.streams[0, 0]
    passes = stream.take(0, 0, 3 * stream.num_samples).reshape(3, -1)
    assert len({tuple(row) for row in passes}) == 3
    assert len({tuple(sorted(row)) for row in passes}) == 1
