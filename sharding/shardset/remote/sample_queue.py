"""Samples that are downloaded before they are read.

Requested samples wait in a queue. Threads take them from it in the order of the requests, each thread for one download
at a time. If the neighbours of a sample in its shard wait too, the same request downloads them, up to `REQUEST_BYTES`.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from upfield.common.stores.byte_ranges import REQUEST_BYTES
from upfield.sharding.shardset.shard_files import SampleTable, Stretch
from upfield.sharding.shardset.shard_index import ShardEntry

# If a store takes 20 ms to respond, a process can receive 3,200 samples per second. Each download has a connection, and
# the eight processes of a node together open 512.
DOWNLOADS_AT_ONCE = 64

Place = tuple[str, int]
"""Name of a split and number of a sample in it."""


@dataclass(eq=False)
class QueuedSample:
    """A sample that was requested."""

    key: str
    """Key of the sample."""
    entry: ShardEntry
    """Shard of the sample."""
    stretch: Stretch
    """Place of the sample's bytes in the shard's tar, and their checksum."""
    num_readers: int = 0
    """Number of calls that requested the sample and have not read it yet."""
    arrived: "Future[memoryview]" = field(default_factory=Future)
    """The sample's bytes."""


Download = Callable[[Sequence[QueuedSample]], list[memoryview]]
"""Function that downloads samples that are neighbours in a shard, and returns the bytes of each."""


class SampleQueue:
    """Samples of a set that wait, are being downloaded, or have arrived and were not read yet."""

    def __init__(self, download: Download) -> None:
        """Store the function. Threads start with the first request."""
        self._download = download
        self._pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE, "samples")
        self._lock = threading.Lock()
        self._requested: dict[Place, QueuedSample] = {}
        self._waiting: dict[Place, QueuedSample] = {}

    def request(self, table: SampleTable, samples: Sequence[int]) -> None:
        """Add samples to the queue. A sample stays in memory until it was taken as often as it was requested."""
        with self._lock:
            for sample, queued in zip(samples, self._find(table, samples), strict=True):
                queued.num_readers += 1
                self._requested[table.split, sample] = queued

    def take(self, table: SampleTable, samples: Sequence[int]) -> list[QueuedSample]:
        """Return samples, which may not have arrived yet. Samples that nobody requested are added to the queue."""
        with self._lock:
            queue = self._find(table, samples)
            for sample, queued in zip(samples, queue, strict=True):
                queued.num_readers -= 1
                if queued.num_readers <= 0:
                    self._requested.pop((table.split, sample), None)
            return queue

    def _find(self, table: SampleTable, samples: Sequence[int]) -> list[QueuedSample]:
        """Return samples of the queue. Those that are absent are added to it."""
        places = [(table.split, sample) for sample in samples]
        queue = {place: self._requested.get(place) or self._waiting.get(place) for place in places}
        absent = [sample for (_, sample), queued in queue.items() if queued is None]
        for sample, stretch in zip(absent, table.stretches(absent) if absent else [], strict=True):
            entry, place = table.entries[stretch.shard], (table.split, sample)
            self._waiting[place] = QueuedSample(table.key(sample), entry, stretch)
            self._pool.submit(self._work)
        return [queue[place] or self._waiting[place] for place in places]

    def _work(self) -> None:
        """Download the first sample that waits, and its neighbours."""
        with self._lock:
            run = self._next_run()
        if not run:
            return
        try:
            parts = self._download(run)
        except BaseException as error:
            for queued in run:
                queued.arrived.set_exception(error)
        else:
            for queued, part in zip(run, parts, strict=True):
                queued.arrived.set_result(part)

    def _next_run(self) -> list[QueuedSample]:
        """Take the first sample that waits, and its neighbours in the shard that wait too."""
        if not self._waiting:
            return []
        split, sample = first = next(iter(self._waiting))
        run = [self._waiting.pop(first)]
        for step in (1, -1):
            place = (split, sample + step)
            while place in self._waiting and _fits(run, self._waiting[place]):
                run.insert(len(run) if step > 0 else 0, self._waiting.pop(place))
                place = (split, place[1] + step)
        return run


def _fits(run: Sequence[QueuedSample], neighbour: QueuedSample) -> bool:
    """Return whether one download may fetch a run and a neighbour of it."""
    stretches = [run[0].stretch, run[-1].stretch, neighbour.stretch]
    num_bytes = max(stretch.end for stretch in stretches) - min(stretch.start for stretch in stretches)
    return neighbour.entry == run[0].entry and num_bytes <= REQUEST_BYTES
