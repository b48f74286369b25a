"""The files of a remote set, by way of the node's cache: fetched with retries, checked as they arrive."""

import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np

from upfield.common.errors import FetchError, InputError, ShardSetError
from upfield.common.files import hash_file
from upfield.common.stores import NEVER, Store, TransferCancelledError, describe_error, is_local
from upfield.distributed.samples.cache import FileIdentity, ShardCache
from upfield.sharding.shardset.manifest import MANIFEST, Manifest, hash_manifest, parse_manifest
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex, parse_index

NUM_INDEX_FETCHES = 16
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
# Not the global generator: the run's random numbers must not depend on the network.
JITTER = random.SystemRandom()


class RemoteFiles:
    """Where the files of a remote set are: in the cache, once they are fetched. A `ShardFiles`."""

    # An evicted file takes its room on the disk for as long as it is open.
    max_open_files = 1

    def __init__(self, store: Store, cache: ShardCache, retries: int) -> None:
        """Take where files come from and go to.

        Args:
            store: the set's folder.
            cache: of this node.
            retries: tries after the first that failed.
        """
        self.store = store
        self.cache = cache
        self.retries = retries
        # What one reader could not have ends the run: no other one should wait for what it wants.
        self._failure: FetchError | None = None
        self._failed = threading.Event()

    def where(self, entry: ShardEntry) -> str:
        """Name a shard's place in errors."""
        return self._where(f"{entry.name}.tar")

    def manifest(self) -> Manifest:
        """Fetch the manifest, which is not kept: it says whether the set is still the same.

        Raises:
            InputError: no complete set is there, it may not be read, or there is no package for such addresses.
            FetchError: the store does not answer as it should.
        """
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / MANIFEST
            self._try(MANIFEST, part, None, self._read_manifest, NEVER)
            return self._read_manifest(part)

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the shards' indices.

        Raises:
            FetchError: one could not be fetched.
        """
        with ThreadPoolExecutor(NUM_INDEX_FETCHES) as pool:
            reads = [pool.submit(self._index, entry) for entry in entries]
            try:
                return [read.result() for read in reads]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def open(self, entry: ShardEntry) -> int:
        """Give a descriptor to read a shard's tar from.

        Raises:
            FetchError: it could not be fetched.
        """
        with self._failing_together():
            return self.cache.open(_tar(entry), lambda part: self._bring_tar(entry, part, self._failed), self._failed)

    def hold(self, entry: ShardEntry, stopped: threading.Event) -> int:
        """Keep a shard in the cache until the descriptor that this gives is released.

        Raises:
            FetchError: it could not be fetched.
            TransferCancelledError: asked to.
        """
        with self._failing_together():
            return self.cache.hold(_tar(entry), lambda part: self._bring_tar(entry, part, stopped), stopped)

    def stop(self) -> None:
        """Break off what threads that read are waiting for; nothing can be read any more."""
        self._failed.set()

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        try:
            yield
        except FetchError as error:
            self._failure = self._failure or error
            self._failed.set()
            raise
        except TransferCancelledError:
            if self._failure:
                raise self._failure from None
            raise

    def _where(self, name: str) -> str:
        return f"{self.store.name}/{name}"

    def _read_manifest(self, part: Path) -> Manifest:
        manifest = parse_manifest(part.read_bytes(), self._where(MANIFEST))
        said, follows = manifest.tree.get("manifest_sha256"), hash_manifest(manifest.tree)
        if said != follows:
            raise ValueError(
                f"a manifest that was changed: its manifest_sha256 is {said}, of the rest follows {follows}"
            )
        return manifest

    def _index(self, entry: ShardEntry) -> ShardIndex:
        file, name = FileIdentity(f"{entry.sha256}.idx"), f"{entry.name}.idx"

        def read(path: Path) -> ShardIndex:
            return checked_index(path.read_bytes(), self._where(name), entry)

        while True:
            descriptor = self.cache.open(file, lambda part: self._try(name, part, None, read, NEVER))
            with os.fdopen(descriptor, "rb") as stream:
                data = stream.read()
            try:
                return checked_index(data, self._where(name), entry)
            except ValueError:  # It was checked as it arrived: the disk has lost it since.
                self.cache.discard(file)

    def _bring_tar(self, entry: ShardEntry, part: Path, stopped: threading.Event) -> None:
        def check(path: Path) -> None:
            if (found := path.stat().st_size) != entry.bytes:
                raise ValueError(f"{found} bytes")
            if (sha256 := hash_file(path)) != entry.sha256:
                raise ValueError(f"other bytes, of sha256 {sha256}")

        self._try(f"{entry.name}.tar", part, entry, check, stopped)

    def _try(
        self,
        name: str,
        part: Path,
        entry: ShardEntry | None,
        check: Callable[[Path], object],
        stopped: threading.Event,
    ) -> None:
        """Fetch a file that passes a check, in several tries."""
        found = ""
        for attempt in range(self.retries + 1):
            if attempt and stopped.wait(backoff_s(attempt)):
                raise TransferCancelledError
            # A transfer that was given up may write a little longer, to a file without a name.
            part.unlink(missing_ok=True)
            try:
                self.store.fetch(name, part, entry.bytes if entry else None, stopped)
                check(part)
                return
            except TransferCancelledError:
                raise
            except Exception as error:  # Each store's client has errors of its own, and none of them is ours to import.
                self._refuse_hopeless(name, error)
                found = describe_error(error)
        what = f"{entry.bytes} bytes of sha256 {entry.sha256}" if entry else "a whole file"
        raise FetchError(
            f"{self._where(name)}: expected {what}, found in {self.retries + 1} tries, in the last one: {found}; "
            "mend the connection or the file there, and run the same command again"
        )

    def _refuse_hopeless(self, name: str, error: Exception) -> None:
        """Raise what no other try would mend."""
        if isinstance(error, InputError) and not isinstance(error, ShardSetError):
            raise error
        if is_local(error):
            raise error
        if name == MANIFEST and isinstance(error, FileNotFoundError):
            raise ShardSetError(
                f"{self._where(name)}: expected a complete shard set, found none; check --data.shards, or send the set "
                "there with upfield shard"
            ) from error
        if name == MANIFEST and isinstance(error, ShardSetError):
            raise error


def checked_index(data: bytes, where: str, entry: ShardEntry) -> ShardIndex:
    """Make an index of a file's bytes and make sure that it is its shard's, for the manifest has no hash of it.

    Raises:
        ShardSetError: the members do not follow one another through the whole shard, as they do in a tar.
    """
    index = parse_index(data, where)
    sizes, offsets = index.sizes.ravel(), index.offsets.ravel()
    # A header's block, then the member, filled up to a whole block.
    room = BLOCKSIZE - (-sizes // BLOCKSIZE) * BLOCKSIZE
    expected = np.cumsum(room) - room + BLOCKSIZE
    if len(index.keys) != entry.samples or (offsets != expected).any() or room.sum() > entry.bytes:
        raise ShardSetError(
            f"{where}: expected the index of a tar of {entry.bytes} bytes, found another; rebuild the set"
        )
    return index


def backoff_s(attempt: int) -> float:
    """Give the pause before another try, the first being 1: twice as long each time, and not the same for all ranks."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1)) * JITTER.uniform(0.5, 1)


def _tar(entry: ShardEntry) -> FileIdentity:
    return FileIdentity(f"{entry.sha256}.tar", entry.bytes, entry.sha256)
