"""The fetcher downloads the windows that a step needs and the next window, and no others."""

import os
import threading

import numpy as np
import pytest

from upfield.common.errors import FetchError
from upfield.distributed.samples.fetcher import Fetcher, FetchSchedule
from upfield.distributed.samples.order import epoch_order


def test_the_next_window_is_fetched_while_this_one_is_consumed() -> None:
    schedule = FetchSchedule(0, np.full(6, 8), window_shards=2, batch_size=4, stop=24)
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
        expected |= {int(shard) for window in schedule.windows_at(step) for shard in window}
        with changed:
            assert changed.wait_for(lambda: held == expected, timeout=10)  # noqa: B023
    fetcher.close()


def test_a_shard_of_the_next_window_that_stays_bad_is_reported_at_the_next_step() -> None:
    schedule, refused = FetchSchedule(0, np.full(6, 8), window_shards=2, batch_size=4, stop=24), threading.Event()
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
    sizes, batch_size, stop = np.array([7, 3, 11, 5, 9]), 4, 22
    shard_of, per_epoch = np.repeat(np.arange(len(sizes)), sizes), int(sizes.sum()) // batch_size
    schedule = FetchSchedule(5, sizes, window_shards, batch_size, stop, lookahead)
    for step in range(stop):
        windows = schedule.windows_at(step)
        for ahead in range(step, min(step + lookahead + 1, stop)):
            epoch, within = divmod(ahead, per_epoch)
            read = epoch_order(5, epoch, sizes, window_shards)[within * batch_size : (within + 1) * batch_size]
            assert set(shard_of[read]) <= {int(shard) for window in windows for shard in window}
        if not lookahead:
            assert len(windows) <= 3
    assert len(schedule.windows_at(stop - 1)) <= 2
