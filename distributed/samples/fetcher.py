"""Threads of the rank's process that download the shards of the next windows before they are needed."""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from upfield.common.stores.transfer import TransferCancelledError
from upfield.distributed.samples.order import SampleOrder, Stream, StreamWindows
from upfield.distributed.samples.reader import Batch, TrainingBatches
from upfield.sharding.shardset.remote.remote_files import RemoteFiles
from upfield.sharding.shardset.remote.shard_cache import release
from upfield.sharding.shardset.shard_split import ShardSplit

# Number of simultaneous downloads per rank. A few downloads saturate a node's network, and the ranks of a node begin
# with different shards.
NUM_FETCHES = 4
CLOSE_WAIT_S = 5.0

Hold = Callable[[int, threading.Event], int]
"""Function that downloads the shard of a number into the cache and returns a descriptor that keeps it there."""


class Schedule(Protocol):
    """Computes the shards that must be in the cache at each step of a process."""

    stop: int
    """Step at which reading ends."""

    def windows_at(self, step: int) -> list[NDArray[np.int64]]:
        """Return the numbers `(shards,)` of shards that are needed during `step` and soon after, most urgent first."""
        ...


class FetchSchedule:
    """Computes the windows of shards that must be in the cache at each step, for the groups that a process reads."""

    def __init__(self, order: SampleOrder, groups: range, stop: int, lookahead: int = 0) -> None:
        """Store the arguments.

        Args:
            order: the sample order.
            groups: groups that the process reads.
            stop: step at which the run ends.
            lookahead: number of steps that the loader reads in advance.
        """
        self.stop = stop
        self._order = order
        self._streams = order.streams_of(groups)
        self._lookahead = lookahead
        self._tables: dict[int, dict[tuple[int, int], StreamWindows]] = {}

    def windows_at(self, step: int) -> list[NDArray[np.int64]]:
        """Compute the windows that are needed during `step`, the most urgent first: `(shards,)` numbers of each.

        Of each stream, these are the window with the step's first sample, the next window, and all later windows that
        the following `lookahead` steps reach.
        """
        windows = [window for stream in self._streams for window in self._windows_of(stream, step)]
        return [shards for _, shards in sorted(windows, key=lambda window: max(window[0], step))]

    def _windows_of(self, stream: Stream, step: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the windows of a stream that are needed during `step`, and the first step that needs each."""
        windows: list[tuple[int, NDArray[np.int64]]] = []
        num_steps = self._order.steps_per_epoch
        for epoch in itertools.count(step // num_steps):
            table, begin = self._table(stream, epoch), epoch * num_steps
            for number in range(int(table.last_steps.searchsorted(step - begin)), len(table.shards)):
                first_step = begin + int(table.first_steps[number])
                if first_step >= self.stop or (len(windows) >= 2 and first_step > step + self._lookahead):
                    return windows
                windows.append((first_step, table.shards[number]))
            reached = begin + num_steps > step + self._lookahead and epoch > step // num_steps
            if reached or (windows and stream.has_one_window) or begin + num_steps >= self.stop:
                break
        return windows

    def _table(self, stream: Stream, epoch: int) -> StreamWindows:
        for past in [number for number in self._tables if number < epoch - 1]:
            del self._tables[past]
        tables = self._tables.setdefault(epoch, {})
        if stream.key not in tables:
            tables[stream.key] = self._order.windows(stream, epoch)
        return tables[stream.key]


class Fetcher:
    """Threads that download the shards of a schedule, hold them in the cache, and release those of earlier steps."""

    def __init__(self, hold: Hold, schedule: Schedule) -> None:
        """Create the threads; `start` starts them.

        Args:
            hold: function that downloads and holds one shard; several threads call it.
            schedule: schedule of the shards that each step needs.
        """
        self._hold = hold
        self._schedule = schedule
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._wanted: set[int] = set()
        self._waiting: deque[int] = deque()
        self._fetching: set[int] = set()
        self._held: dict[int, int] = {}
        self._error: Exception | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(NUM_FETCHES)]

    def advance(self, step: int) -> None:
        """Advance to `step`: release the shards that only earlier steps needed, and download those of the next windows.

        Raises:
            Exception: the error of a thread that could not download its shard.
        """
        with self._changed:
            if self._error:
                raise self._error
            if step >= self._schedule.stop:
                return
            order = [int(shard) for window in self._schedule.windows_at(step) for shard in rotate_to_own_part(window)]
            self._wanted = set(order)
            for shard in self._held.keys() - self._wanted:
                release(self._held.pop(shard))
            self._waiting = deque(s for s in dict.fromkeys(order) if s not in self._held and s not in self._fetching)
            self._changed.notify_all()

    def start(self, step: int) -> None:
        """Start the threads, which begin with the shards that `step` needs."""
        self.advance(step)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Cancel the downloads and release all shards."""
        self._stopped.set()
        with self._changed:
            self._wanted, self._waiting = set(), deque()
            self._changed.notify_all()
        for thread in self._threads:
            # A download that does not react to the cancellation ends with the process.
            thread.join(CLOSE_WAIT_S)
        with self._changed:
            while self._held:
                release(self._held.popitem()[1])

    def _work(self) -> None:
        try:
            while (shard := self._next()) is not None:
                self._keep(shard, self._hold(shard, self._stopped))
        except TransferCancelledError:
            pass
        except Exception as error:
            with self._changed:
                self._error = self._error or error

    def _next(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._error or self._stopped.is_set())
            if self._error or self._stopped.is_set():
                return None
            shard = self._waiting.popleft()
            self._fetching.add(shard)
            return shard

    def _keep(self, shard: int, descriptor: int) -> None:
        with self._changed:
            self._fetching.discard(shard)
            if shard in self._wanted:
                self._held[shard] = descriptor
            else:
                release(descriptor)


def fetch_ahead(
    loader: Generator[Batch, None, None], batches: TrainingBatches, steps: range, ahead: int
) -> Generator[Batch, None, None]:
    """Yield a loader's batches, and meanwhile download the shards of later batches if the set is remote.

    Args:
        loader: generator of the batches of `steps`; it is closed together with this generator.
        batches: batches that the loader reads.
        steps: global steps, from 0.
        ahead: number of batches that the loader may read in advance.

    Raises:
        FetchError: a shard could not be downloaded.
    """
    plan = batches.plan
    schedule = FetchSchedule(batches.order, batches.order.groups_of(plan.rank, plan.world_size), steps.stop, ahead)
    fetched = fetch_shards(loader, batches.split, schedule, steps)
    try:
        # `yield from` would close `fetched` first, which waits for the downloads that `stop` cancels.
        for batch in fetched:  # noqa: UP028
            yield batch
    finally:
        batches.split.source.stop()
        fetched.close()


def fetch_shards(
    loader: Generator[Batch, None, None], split: ShardSplit, schedule: Schedule, steps: range
) -> Generator[Batch, None, None]:
    """Yield a loader's batches, and meanwhile download the shards that a schedule names if the set is remote.

    Args:
        loader: generator of the batches of `steps`; it is closed together with this generator.
        split: split that the loader reads.
        schedule: schedule of the shards that each step needs.
        steps: steps of the loader.

    Raises:
        FetchError: a shard could not be downloaded.
    """
    with closing(loader), _run_fetcher(split, schedule, steps.start) as advance:
        for step, batch in zip(steps, loader, strict=True):
            yield batch
            advance(step + 1)


@contextmanager
def _run_fetcher(split: ShardSplit, schedule: Schedule, start: int) -> Iterator[Callable[[int], None]]:
    """Run a fetcher if the set is remote. Yield a function that must be called with the number of each next step."""
    source, entries = split.source, split.entries
    if not isinstance(source, RemoteFiles):
        yield lambda _: None
        return
    fetcher = Fetcher(lambda shard, stopped: source.hold(entries[shard], stopped), schedule)
    try:
        fetcher.start(start)
        yield fetcher.advance
    finally:
        fetcher.close()


def rotate_to_own_part(window: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rotate the shards `(shards,)` of a window, so that each rank of a node begins with a different part of them."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return np.roll(window, -(len(window) * local_rank // local_world_size))
