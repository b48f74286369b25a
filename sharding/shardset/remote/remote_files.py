"""The files of a remote set, which are downloaded into the node's cache with retries and then checked."""

import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from upfield.common.errors import CommandError, FetchError, InputError, ShardSetError, WrongContentError
from upfield.common.files import hash_file
from upfield.common.stores.store import Store
from upfield.common.stores.store_errors import describe_error, is_local
from upfield.common.stores.transfer import NEVER, TransferCancelledError
from upfield.sharding.shardset.manifest import MANIFEST, Manifest, hash_manifest, parse_manifest
from upfield.sharding.shardset.remote.shard_cache import FileIdentity, ShardCache
from upfield.sharding.shardset.shard_files import OpenShards, SampleTable
from upfield.sharding.shardset.shard_index import ShardEntry, ShardIndex, parse_fitting_index
from upfield.sharding.shardset.split_index import SUFFIX, IndexEntry, SplitIndex, map_index, parse_split_index

NUM_INDEX_FETCHES = 16
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
# The global generator is not used, because the run's random numbers must not depend on the network.
JITTER = random.SystemRandom()
FETCH_REMEDY = " Check the connection and the remote file, then run the same command again."

T = TypeVar("T")


class ChecksumError(ValueError):
    """Bytes that have arrived have another checksum than in the manifest or the index."""


class RemoteFolder:
    """The folder of a set at an address. Each download is tried again if it fails, or if the content is wrong."""

    def __init__(self, store: Store, retries: int, shards_flag: str = "--shards") -> None:
        """Store the arguments. This downloads nothing.

        Args:
            store: store with the folder of the set.
            retries: number of retries after the first try has failed.
            shards_flag: flag that named the address, for error messages.
        """
        self.store = store
        self.retries = retries
        self.shards_flag = shards_flag

    def manifest(self) -> Manifest:
        """Fetch the manifest. It is not cached, because it shows whether the set has changed.

        Raises:
            InputError: there is no complete set, access is denied, or the package for this kind of address is missing.
            FetchError: the store does not respond correctly.
        """
        return self.read(MANIFEST, self._parse_manifest)

    def read(self, name: str, parse: Callable[[bytes], T]) -> T:
        """Fetch a small file, and return what `parse` makes of its content.

        Args:
            name: name of the file below the folder.
            parse: function that parses the content. If it raises an error, the file is fetched again.

        Raises:
            InputError: access is denied, or there is no set.
            FetchError: no try succeeded.
        """
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            return self.try_download(name, part, None, lambda path: parse(path.read_bytes()), NEVER)

    def where(self, name: str) -> str:
        """Return the address of a file, for error messages."""
        return f"{self.store.name}/{name}"

    def try_download(
        self,
        name: str,
        part: Path,
        entry: ShardEntry | IndexEntry | None,
        check: Callable[[Path], T],
        stopped: threading.Event,
    ) -> T:
        """Download a file and return the result of its check. Try again if the download or the check fails.

        Args:
            name: name of the file below the folder.
            part: path of the new file.
            entry: the shard whose tar this is, or the split's index; None for other files.
            check: function that raises an error if the content is wrong.
            stopped: event that the caller sets to cancel the download.

        Raises:
            InputError: access is denied, or there is no set.
            FetchError: no try succeeded.
            TransferCancelledError: `stopped` was set.
        """

        def download() -> T:
            # A cancelled transfer may continue to write for a moment. Unlink its file, so that it cannot write to
            # the file of the next try.
            part.unlink(missing_ok=True)
            self.store.fetch(name, part, entry.bytes if entry else None, stopped)
            return check(part)

        return self.try_again(name, describe_content(entry) if entry else "the file", download, stopped)

    def try_again(self, name: str, what: str, attempt: Callable[[], T], stopped: threading.Event = NEVER) -> T:
        """Return the result of `attempt`. If it raises an error that another try may fix, call it again after a pause.

        Args:
            name: name of the file that `attempt` downloads.
            what: what `attempt` downloads of the file, for the error message.
            attempt: function that downloads the file and checks it.
            stopped: event that the caller sets to cancel the download.

        Raises:
            InputError: access is denied, or there is no set.
            FetchError: no try succeeded. It is a WrongContentError if the last try brought a wrong checksum.
            TransferCancelledError: `stopped` was set.
        """
        problem, kind = "", FetchError
        for number in range(self.retries + 1):
            if number and stopped.wait(backoff_s(number)):
                raise TransferCancelledError
            try:
                return attempt()
            except TransferCancelledError:
                raise
            except Exception as error:  # Each client has its own error classes, which cannot be imported here.
                self._refuse_hopeless(name, error)
                problem = describe_error(error).removesuffix(".")
                kind = WrongContentError if isinstance(error, ChecksumError) else FetchError
        if command := self.store.command:
            what += f" with the command {command}"
        tries = f"{self.retries + 1} tries" if self.retries else "1 try"
        raise (CommandError if command else kind)(
            f"{self.where(name)}: {tries} to download {what} failed; the last error was: {problem}.{FETCH_REMEDY}"
        )

    def _parse_manifest(self, data: bytes) -> Manifest:
        manifest = parse_manifest(data, self.where(MANIFEST))
        stored, computed = manifest.tree.get("manifest_sha256"), hash_manifest(manifest.tree)
        if stored != computed:
            raise ChecksumError(
                f"the manifest was changed: its manifest_sha256 is {stored}, but its content has {computed}"
            )
        return manifest

    def _refuse_hopeless(self, name: str, error: Exception) -> None:
        """Raise the given error if another try cannot fix it."""
        if isinstance(error, InputError) and not isinstance(error, ShardSetError):
            raise error
        if is_local(error):
            raise error
        if name == MANIFEST and isinstance(error, FileNotFoundError):
            raise ShardSetError(
                f"{self.where(name)}: there is no complete shard set at this address. Check {self.shards_flag}, or "
                "upload the set with upfield shard."
            ) from error
        if name == MANIFEST and isinstance(error, ShardSetError):
            raise error


class RemoteFiles:
    """Access to the files of a remote set through the cache. Implements `ShardFiles`."""

    def __init__(self, folder: RemoteFolder, cache: ShardCache) -> None:
        """Store the arguments. This downloads nothing.

        Args:
            folder: folder of the set in the store.
            cache: cache of the node.
        """
        self.folder = folder
        self.cache = cache
        # If one reader cannot get its shard, the run ends, so the other readers stop waiting for theirs.
        self.stopped = threading.Event()
        self._failure: FetchError | None = None

    def where(self, entry: ShardEntry) -> str:
        """Return the address of a shard's tar, for error messages."""
        return self.folder.where(f"{entry.name}.tar")

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

    def split_index(self, entry: IndexEntry, split: str) -> SplitIndex:
        """Read the index of a split. It stays in the cache for as long as its arrays are used.

        Raises:
            ShardSetError: the file is damaged or has a newer layout.
            FetchError: the file could not be fetched.
        """
        file, where = FileIdentity(f"{entry.sha256}{SUFFIX}", entry.bytes, entry.sha256), self.folder.where(entry.name)
        descriptor = self.cache.hold(file, lambda part: self._download(entry.name, entry, part, NEVER))
        try:
            # The mapping duplicates the descriptor and thereby keeps its lock.
            data = map_index(descriptor, where, entry)
        finally:
            os.close(descriptor)
        return parse_split_index(data, where, split)

    def open(self, entry: ShardEntry) -> int:
        """Open a shard's tar for reading, and return a descriptor of the tar.

        Raises:
            FetchError: the shard could not be fetched.
        """
        with self.share_failure():
            return self.cache.open(
                _tar(entry), lambda part: self._download_tar(entry, part, self.stopped), self.stopped
            )

    def reader(self, table: SampleTable) -> OpenShards:
        """Return a reader that opens the shards of a split in the cache."""
        # An evicted file occupies disk space for as long as it is open.
        return OpenShards(self, table.entries, max_open_files=1)

    def hold(self, entry: ShardEntry, stopped: threading.Event) -> int:
        """Return a descriptor of a shard that keeps it in the cache until the descriptor is released.

        Raises:
            FetchError: the shard could not be fetched.
            TransferCancelledError: `stopped` was set.
        """
        with self.share_failure():
            return self.cache.hold(_tar(entry), lambda part: self._download_tar(entry, part, stopped), stopped)

    def stop(self) -> None:
        """Cancel all transfers that threads are waiting for. After this call, no file can be read."""
        self.stopped.set()

    @contextmanager
    def share_failure(self) -> Iterator[None]:
        """Cancel all transfers if one fails, and raise the error of that one for the transfers that are cancelled."""
        try:
            yield
        except FetchError as error:
            self._failure = self._failure or error
            self.stopped.set()
            raise
        except TransferCancelledError:
            if self._failure:
                raise self._failure from None
            raise

    def _index(self, entry: ShardEntry) -> ShardIndex:
        file, name = FileIdentity(f"{entry.sha256}.idx"), f"{entry.name}.idx"

        def read(path: Path) -> ShardIndex:
            return parse_fitting_index(path.read_bytes(), self.folder.where(name), entry)

        while True:
            descriptor = self.cache.open(file, lambda part: self.folder.try_download(name, part, None, read, NEVER))
            with os.fdopen(descriptor, "rb") as stream:
                data = stream.read()
            try:
                return parse_fitting_index(data, self.folder.where(name), entry)
            except ValueError:  # The index was correct after the download, so the disk has damaged it since.
                self.cache.discard(file)

    def _download_tar(self, entry: ShardEntry, part: Path, stopped: threading.Event) -> None:
        self._download(f"{entry.name}.tar", entry, part, stopped)

    def _download(self, name: str, entry: ShardEntry | IndexEntry, part: Path, stopped: threading.Event) -> None:
        def check(path: Path) -> None:
            if (num_bytes := path.stat().st_size) != entry.bytes:
                raise ValueError(f"the file has {num_bytes} bytes")
            if (sha256 := hash_file(path)) != entry.sha256:
                raise ChecksumError(f"the file has sha256 {sha256}")

        self.folder.try_download(name, part, entry, check, stopped)


def describe_content(entry: ShardEntry | IndexEntry) -> str:
    """Return the size and the hash that a downloaded shard or index must have, for error messages."""
    return f"{entry.bytes} bytes of sha256 {entry.sha256}"


def backoff_s(attempt: int) -> float:
    """Return the pause in seconds before retry `attempt`, from 1.

    The pause doubles with each retry up to a limit, and is then multiplied by a random number from 0.5 to 1.
    """
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1)) * JITTER.uniform(0.5, 1)


def _tar(entry: ShardEntry) -> FileIdentity:
    return FileIdentity(f"{entry.sha256}.tar", entry.bytes, entry.sha256)
