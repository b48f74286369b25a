"""The samples of a remote set, each downloaded by its range of bytes and checked by its CRC-32. Nothing is cached."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from tarfile import BLOCKSIZE
from typing import TypeVar

from upfield.common.stores.transfer import TransferCancelledError
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.remote_files import RemoteFiles
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.sample_queue import QueuedSample, SampleQueue
from upfield.sharding.shardset.shard_files import Piece, SampleTable
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex

T = TypeVar("T")


class RemoteSamples:
    """Access to a remote set by ranges of bytes. Only its indices are cached. Implements `ShardFiles`."""

    def __init__(self, files: RemoteFiles) -> None:
        """Store the files of the set. This downloads nothing."""
        self._files = files
        self._queue = SampleQueue(self._download)

    def where(self, entry: ShardEntry) -> str:
        """Return the address of a shard's tar, for error messages."""
        return self._files.where(entry)

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices."""
        return self._files.indices(entries)

    def reader(self, table: SampleTable) -> "SampleFetcher":
        """Return a reader of the samples of a split."""
        return SampleFetcher(self._queue, table)

    def stop(self) -> None:
        """Cancel all downloads. After this call, nothing can be downloaded."""
        self._files.stop()

    def refuse_store(self, manifest: Manifest) -> None:
        """Check that the store answers requests for ranges of bytes.

        Raises:
            InputError: the store sends whole files.
            FetchError: the store does not respond correctly.
        """
        for entry in [entry for split in SPLITS for entry in manifest.shards(split)][:1]:
            self._fetch(entry, 0, BLOCKSIZE, f"its first {BLOCKSIZE} bytes", len)

    def _download(self, run: Sequence[QueuedSample]) -> list[memoryview]:
        """Download samples that are neighbours in a shard, and return the bytes of each."""
        first, last = run[0], run[-1]
        start = first.stretch.start

        def check(data: bytes) -> list[memoryview]:
            view = memoryview(data)
            parts = [view[queued.stretch.start - start : queued.stretch.end - start] for queued in run]
            for queued, part in zip(run, parts, strict=True):
                if (crc32 := zlib.crc32(part)) != queued.stretch.crc32:
                    raise ValueError(
                        f"sample {queued.key} has CRC-32 {crc32}, but the index has {queued.stretch.crc32}"
                    )
            return parts

        what = f"sample {first.key}" if first is last else f"{len(run)} samples from {first.key} to {last.key}"
        return self._fetch(first.entry, start, last.stretch.end, what, check)

    def _fetch(self, entry: ShardEntry, start: int, end: int, what: str, check: Callable[[bytes], T]) -> T:
        """Download a range of a shard's bytes. Return the result of `check`, which raises an error for wrong bytes."""
        name, stopped, folder = f"{entry.name}.tar", self._files.stopped, self._files.folder

        def fetch() -> T:
            if stopped.is_set():
                raise TransferCancelledError
            (data,) = folder.store.fetch_ranges(name, [(start, end)], stopped)
            return check(data)

        with self._files.share_failure():
            return folder.try_again(name, what, fetch, stopped)


class SampleFetcher:
    """Reads samples of one split that are downloaded one by one. Implements `SampleReader`."""

    def __init__(self, queue: SampleQueue, table: SampleTable) -> None:
        """Store the arguments.

        Args:
            queue: samples of the set that are downloaded, for all readers of the process.
            table: samples of the split.
        """
        self._queue = queue
        self._table = table

    def request(self, samples: Sequence[int]) -> None:
        """Start to download samples, which the next call of `read` will read."""
        self._queue.request(self._table, list(dict.fromkeys(samples)))

    def read(self, pieces: Iterable[Piece]) -> None:
        """Read pieces of samples into their targets. Samples that were not requested are downloaded all at once.

        Raises:
            FetchError: a sample could not be downloaded.
            InputError: the store denies access, or sends whole files.
        """
        pieces = list(pieces)
        samples = list(dict.fromkeys(piece.sample for piece in pieces))
        queue = dict(zip(samples, self._queue.take(self._table, samples), strict=True))
        for piece in pieces:
            queued = queue[piece.sample]
            data, position = queued.arrived.result(), piece.offset - queued.stretch.start
            for target in piece.targets:
                target.cast("B")[:] = data[position : position + target.nbytes]
                position += target.nbytes

    def close(self) -> None:
        """Do nothing, because no file is open."""
