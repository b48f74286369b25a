"""The files of a remote set, which are downloaded into the node's cache with retries and then checked."""

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

from upfield.common.errors import CommandError, FetchError, InputError, ShardSetError
from upfield.common.files import hash_file
from upfield.common.stores.command_client import CommandFailedError
from upfield.common.stores.store import Store
from upfield.common.stores.store_errors import describe_error, is_local
from upfield.common.stores.transfer import NEVER, TransferCancelledError
from upfield.sharding.shardset.manifest import MANIFEST, Manifest, hash_manifest, parse_manifest
from upfield.sharding.shardset.shard_cache import FileIdentity, ShardCache
from upfield.sharding.shardset.shard_files import OpenShards, Stretches
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex, parse_index

NUM_INDEX_FETCHES = 16
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
# The global generator is not used, because the run's random numbers must not depend on the network.
JITTER = random.SystemRandom()


class RemoteFiles:
    """Access to the files of a remote set through the cache. Implements `ShardFiles`."""

    def __init__(self, store: Store, cache: ShardCache, retries: int) -> None:
        """Store the arguments. This downloads nothing.

        Args:
            store: store with the folder of the set.
            cache: cache of the node.
            retries: number of retries after the first try has failed.
        """
        self.store = store
        self.cache = cache
        self.retries = retries
        # If one reader cannot get its shard, the run ends, so the other readers stop waiting for theirs.
        self._failure: FetchError | None = None
        self._failed = threading.Event()

    def where(self, entry: ShardEntry) -> str:
        """Return the address of a shard's tar, for error messages."""
        return self._where(f"{entry.name}.tar")

    def manifest(self) -> Manifest:
        """Fetch the manifest. It is not cached, because it shows whether the set has changed.

        Raises:
            InputError: there is no complete set, access is denied, or the package for this kind of address is missing.
            FetchError: the store does not respond correctly.
        """
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / MANIFEST
            self._try(MANIFEST, part, None, self._read_manifest, NEVER)
            return self._read_manifest(part)

    def indices(self, entries: Sequence[ShardEntry]) -> list[ShardIndex]:
        """Read the indices of shards.

        Raises:
            FetchError: an index could not be fetched.
        """
        with ThreadPoolExecutor(NUM_INDEX_FETCHES) as pool:
            reads = [pool.submit(self._index, entry) for entry in entries]
            try:
                return [read.result() for read in reads]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def open(self, entry: ShardEntry) -> int:
        """Open a shard's tar for reading, and return a descriptor of the tar.

        Raises:
            FetchError: the shard could not be fetched.
        """
        with self._share_failure():
            return self.cache.open(
                _tar(entry), lambda part: self._download_tar(entry, part, self._failed), self._failed
            )

    def reader(self, entries: Sequence[ShardEntry], stretches: Stretches) -> OpenShards:
        """Return a reader that opens the shards of a split in the cache."""
        # An evicted file occupies disk space for as long as it is open.
        return OpenShards(self, entries, max_open_files=1)

    def hold(self, entry: ShardEntry, stopped: threading.Event) -> int:
        """Return a descriptor of a shard that keeps it in the cache until the descriptor is released.

        Raises:
            FetchError: the shard could not be fetched.
            TransferCancelledError: `stopped` was set.
        """
        with self._share_failure():
            return self.cache.hold(_tar(entry), lambda part: self._download_tar(entry, part, stopped), stopped)

    def stop(self) -> None:
        """Cancel all transfers that threads are waiting for. After this call, no file can be read."""
        self._failed.set()

    @contextmanager
    def _share_failure(self) -> Iterator[None]:
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
        stored, computed = manifest.tree.get("manifest_sha256"), hash_manifest(manifest.tree)
        if stored != computed:
            raise ValueError(
                f"the manifest was changed: its manifest_sha256 is {stored}, but its content has {computed}"
            )
        return manifest

    def _index(self, entry: ShardEntry) -> ShardIndex:
        file, name = FileIdentity(f"{entry.sha256}.idx"), f"{entry.name}.idx"

        def read(path: Path) -> ShardIndex:
            return parse_fitting_index(path.read_bytes(), self._where(name), entry)

        while True:
            descriptor = self.cache.open(file, lambda part: self._try(name, part, None, read, NEVER))
            with os.fdopen(descriptor, "rb") as stream:
                data = stream.read()
            try:
                return parse_fitting_index(data, self._where(name), entry)
            except ValueError:  # The index was correct after the download, so the disk has damaged it since.
                self.cache.discard(file)

    def _download_tar(self, entry: ShardEntry, part: Path, stopped: threading.Event) -> None:
        def check(path: Path) -> None:
            if (num_bytes := path.stat().st_size) != entry.bytes:
                raise ValueError(f"the file has {num_bytes} bytes")
            if (sha256 := hash_file(path)) != entry.sha256:
                raise ValueError(f"the file has sha256 {sha256}")

        self._try(f"{entry.name}.tar", part, entry, check, stopped)

    def _try(
        self,
        name: str,
        part: Path,
        entry: ShardEntry | None,
        check: Callable[[Path], object],
        stopped: threading.Event,
    ) -> None:
        """Download a file and check it. Try again if the download or the check fails."""
        problem, kind = "", FetchError
        for attempt in range(self.retries + 1):
            if attempt and stopped.wait(backoff_s(attempt)):
                raise TransferCancelledError
            # A cancelled transfer may continue to write for a moment. Unlink its file, so that it cannot write to
            # the file of the next try.
            part.unlink(missing_ok=True)
            try:
                self.store.fetch(name, part, entry.bytes if entry else None, stopped)
                check(part)
                return
            except TransferCancelledError:
                raise
            except Exception as error:  # Each client has its own error classes, which cannot be imported here.
                self._refuse_hopeless(name, error)
                problem = describe_error(error)
                kind = CommandError if isinstance(error, CommandFailedError) else FetchError
        what = f"{entry.bytes} bytes of sha256 {entry.sha256}" if entry else "the file"
        raise kind(
            f"{self._where(name)}: {self.retries + 1} tries to download {what} failed; the last error was: {problem}. "
            "Check the connection and the remote file, then run the same command again."
        )

    def _refuse_hopeless(self, name: str, error: Exception) -> None:
        """Raise the given error if another try cannot fix it."""
        if isinstance(error, InputError) and not isinstance(error, ShardSetError):
            raise error
        if is_local(error):
            raise error
        if name == MANIFEST and isinstance(error, FileNotFoundError):
            raise ShardSetError(
                f"{self._where(name)}: there is no complete shard set at this address. Check --data.shards, or "
                "upload the set with upfield shard."
            ) from error
        if name == MANIFEST and isinstance(error, ShardSetError):
            raise error


def parse_fitting_index(data: bytes, where: str, entry: ShardEntry) -> ShardIndex:
    """Parse the bytes of an index, and check that it fits its shard, because the manifest has no hash of the index.

    Args:
        data: content of the index file.
        where: address of the index file, for error messages.
        entry: shard to which the index belongs.

    Raises:
        ShardSetError: the members do not follow one another through the whole shard, as they do in a tar.
    """
    index = parse_index(data, where)
    sizes, offsets = index.sizes.ravel(), index.offsets.ravel()
    # Each member takes one block for its header, then its data, padded to whole blocks.
    room = BLOCKSIZE - (-sizes // BLOCKSIZE) * BLOCKSIZE
    expected = np.cumsum(room) - room + BLOCKSIZE
    if len(index.keys) != entry.samples or (offsets != expected).any() or room.sum() > entry.bytes:
        raise ShardSetError(f"{where}: the index does not fit its tar of {entry.bytes} bytes. Build the set again.")
    return index


def backoff_s(attempt: int) -> float:
    """Return the pause in seconds before retry `attempt`, from 1.

    The pause doubles with each retry up to a limit, and is then multiplied by a random number from 0.5 to 1."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1)) * JITTER.uniform(0.5, 1)


def _tar(entry: ShardEntry) -> FileIdentity:
    return FileIdentity(f"{entry.sha256}.tar", entry.bytes, entry.sha256)
