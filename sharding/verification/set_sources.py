"""The two places that a set is verified in: a folder, and an address. Both hand the bytes of a shard to one scan."""

import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from upfield.common.addresses import is_remote
from upfield.common.errors import InputError, RunError, ShardSetError
from upfield.common.progress import say
from upfield.sharding.shardset.configuration import AccessConfig
from upfield.sharding.shardset.manifest import (
    MANIFEST,
    Manifest,
    is_unfinished,
    parse_manifest,
    read_manifest,
)
from upfield.sharding.shardset.remote.remote_files import RemoteFolder, describe_content
from upfield.sharding.shardset.sample_key import SampleKey, key_part
from upfield.sharding.shardset.shard_index import (
    LABELS,
    MEMBERS,
    REMEDY,
    SUFFIXES,
    ShardEntry,
    ShardIndex,
    parse_fitting_index,
)
from upfield.sharding.shardset.shard_list import is_shard_list
from upfield.sharding.shardset.shard_set import local_folder, open_remote_folder
from upfield.sharding.shardset.split_index import INDEX_NAME
from upfield.sharding.verification.shard_scan import SampleLayout, ScannedSample, scan_samples
from upfield.sharding.verification.shard_stream import BrokenStreamError, ShardStream

CHUNK_BYTES = 1 << 20
# Web servers have no common way to list a folder.
UNLISTED = ("http", "https")


@dataclass(frozen=True)
class ScannedShard:
    """What a tar holds."""

    bytes: int
    """Size of the file."""
    sha256: str | None = None
    """Hash of its bytes; None if it was not computed."""
    samples: list[ScannedSample] = field(default_factory=list)
    """The samples, in the order in which the tar holds them."""
    problem: str = ""
    """Why the samples cannot be read; empty if they can."""

    def fits(self, entry: ShardEntry) -> bool:
        """Return whether size and hash are those in the manifest."""
        return (self.bytes, self.sha256) == (entry.bytes, entry.sha256)


class SetSource(Protocol):
    """The files of a set that is verified."""

    name: str
    """Folder or address of the set."""
    remedy: str
    """What the user can do if a file is wrong."""
    is_unfinished: bool
    """Whether an extension of the set has begun and is not complete."""
    shards_at_once: int
    """Number of shards that are read at a time."""

    def manifest(self) -> Manifest:
        """Read the manifest. Its hashes are compared later, together with everything else."""
        ...

    def sizes(self) -> dict[str, int] | None:
        """Return the size of each tar and index by its name below the set, or None if files cannot be listed."""
        ...

    def read(self, name: str) -> bytes | None:
        """Read a small file. Return None if it is missing."""
        ...

    def scan(self, entry: ShardEntry, layout: SampleLayout) -> ScannedShard | None:
        """Read a whole shard once, hash it, and check its samples. Return None if it is missing."""
        ...

    def look_at(
        self, entry: ShardEntry, layout: SampleLayout, index: bytes | None, described: ShardIndex | None
    ) -> ScannedShard | None:
        """Check what can be checked of a shard without reading its voxels. Return None if it is missing.

        Args:
            entry: the shard.
            layout: the members that each sample must have.
            index: content of the shard's `.idx` file; None if it is missing.
            described: what the index of the split says of the shard; None if the set has no such index.
        """
        ...

    def stop(self) -> None:
        """Cancel everything that other threads read."""
        ...


def open_source(shards: str | Path, access: AccessConfig) -> SetSource:
    """Return the source of the files of a set in a folder or at an address.

    Raises:
        InputError: the address cannot be used.
    """
    if is_shard_list(str(shards)):
        raise InputError(f"{shards}: this lists shards of a set. Name the set, because all of it is checked.")
    if is_remote(str(shards)):
        return AddressSource(open_remote_folder(str(shards), access))
    return FolderSource(local_folder(shards, access))


class FolderSource:
    """The files of a set in a folder."""

    # Several threads would wait for the interpreter most of the time.
    shards_at_once = 1

    def __init__(self, root: Path) -> None:
        """Remember the folder."""
        self._root = root
        self.name = str(root)
        self.is_unfinished = is_unfinished(root)
        self.remedy = "Run upfield shard again to finish the set." if self.is_unfinished else REMEDY

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            ShardSetError: there is no complete set.
        """
        return read_manifest(self._root)

    def sizes(self) -> dict[str, int]:
        """Return the size of each tar and index, leftovers of a killed build included."""
        found = sorted(
            path for path in self._root.rglob("*") if path.suffix in SUFFIXES or INDEX_NAME.fullmatch(path.name)
        )
        return {str(path.relative_to(self._root)): path.stat().st_size if path.is_file() else 0 for path in found}

    def read(self, name: str) -> bytes | None:
        """Read a small file. Return None if it is missing."""
        path = self._root / name
        return path.read_bytes() if path.is_file() else None

    def scan(self, entry: ShardEntry, layout: SampleLayout) -> ScannedShard | None:
        """Read a whole shard once, hash it, and check its samples. Return None if it is missing."""
        path = self._root / f"{entry.name}.tar"
        if not path.is_file():
            return None
        with path.open("rb", buffering=0) as file:
            return scan_stream(iter(lambda: file.read(CHUNK_BYTES), b""), layout)

    def look_at(
        self, entry: ShardEntry, layout: SampleLayout, index: bytes | None, described: ShardIndex | None
    ) -> ScannedShard | None:
        """Read a shard's size, names, npy headers and records. Return None if it is missing."""
        path = self._root / f"{entry.name}.tar"
        if not path.is_file():
            return None
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                return ScannedShard(size, None, scan_samples(file, layout, quick=True))
        except (tarfile.TarError, OSError) as error:
            return ScannedShard(size, problem=_incomplete(error))

    def stop(self) -> None:
        """Do nothing, because reading a file ends by itself."""


class AddressSource:
    """The files of a set at an address, which are checked while they are downloaded and stored nowhere."""

    is_unfinished = False
    # Each is in memory as a few MB. More do not help, because a core or the network is the limit.
    shards_at_once = 4

    def __init__(self, folder: RemoteFolder) -> None:
        """Remember the folder in the store. This downloads nothing."""
        self._folder = folder
        self.name = folder.store.name
        self.remedy = "Upload the set again."
        self._sizes: dict[str, int] | None = None
        self._subjects: dict[tuple[str, str], tuple[str, str]] = {}
        self._stopped = threading.Event()

    def manifest(self) -> Manifest:
        """Download the manifest.

        Raises:
            InputError: there is no complete set, or access is denied.
            FetchError: the store does not respond correctly.
        """
        manifest = self._folder.read(MANIFEST, lambda data: parse_manifest(data, self._folder.where(MANIFEST)))
        with suppress(KeyError, TypeError):  # The check of the manifest reports them.
            # Keys hold ids in which some characters were replaced.
            self._subjects = {
                (cohort, key_part(name)): (cohort, name) for cohort, name in manifest.subjects_of_all_splits
            }
        return manifest

    def sizes(self) -> dict[str, int] | None:
        """Return the size of each tar and index, or None, with a message, if the store does not list them."""
        if self._folder.store.address.partition("://")[0] in UNLISTED:
            say(f"{self.name}: extra files were not looked for, because web servers cannot list files")
            return None
        try:
            listed = self._folder.store.list_sizes()
        except (InputError, RunError) as error:
            say(f"{self.name}: extra files were not looked for, because they could not be listed: {error}")
            return None
        # Indices of the set before it was extended stay in the store.
        self._sizes = {name: size for name, size in listed.items() if name.endswith(SUFFIXES)}
        return self._sizes

    def read(self, name: str) -> bytes | None:
        """Download a small file. Return None if it is missing.

        Raises:
            InputError: access is denied.
            FetchError: the store does not respond correctly.
        """
        store = self._folder.store

        def attempt() -> bytes | None:
            try:
                return b"".join(store.stream(name, self._stopped))
            except FileNotFoundError:
                return None

        return self._folder.try_again(name, "the file", attempt, self._stopped)

    def scan(self, entry: ShardEntry, layout: SampleLayout) -> ScannedShard | None:
        """Download a shard, and hash it and check its samples as its bytes pass. Return None if it is missing.

        A shard with the wrong content is downloaded again. If the same content arrives twice, the store holds it.

        Raises:
            InputError: access is denied.
            FetchError: the store does not respond correctly.
        """
        name, before = f"{entry.name}.tar", None

        def attempt() -> ScannedShard | None:
            nonlocal before
            try:
                scanned = scan_stream(self._folder.store.stream(name, self._stopped), layout)
            except BrokenStreamError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    return None
                raise error.__cause__ or error from None
            if not scanned.fits(entry) and self._folder.retries and before != (scanned.bytes, scanned.sha256):
                before = scanned.bytes, scanned.sha256
                raise ValueError(f"the file has {scanned.bytes} bytes and sha256 {scanned.sha256}")
            return scanned

        return self._folder.try_again(name, describe_content(entry), attempt, self._stopped)

    def look_at(
        self, entry: ShardEntry, layout: SampleLayout, index: bytes | None, described: ShardIndex | None
    ) -> ScannedShard | None:
        """Check a shard by the indices and, if the store lists files, by its size. Return None if it is missing."""
        size = entry.bytes if self._sizes is None else self._sizes.get(f"{entry.name}.tar")
        if size is None:
            return None
        try:
            # The index of the split has a hash in the manifest, and the `.idx` file has none.
            parsed = described or parse_fitting_index(index or b"", self._folder.where(f"{entry.name}.idx"), entry)
            keys = [SampleKey.parse(key.decode("ascii")) for key in parsed.keys]
        except ShardSetError as error:
            reason = f"its index cannot be used: {split_remedy(error)[0]}"
            return ScannedShard(size, problem=reason if index else "it has no index")
        suffixes = (*MEMBERS, LABELS)
        places = zip(parsed.offsets.tolist(), parsed.sizes.tolist(), strict=True)
        members = [
            # Missing labels have the size 0.
            tuple((f"{key}.{suffix}", *place) for suffix, *place in zip(suffixes, *two, strict=True) if place[1])
            for key, two in zip(keys, places, strict=True)
        ]
        samples = [
            ScannedSample(of, (), str(key), self._subjects.get(subject := (key.cohort, key.subject), subject))
            for key, of in zip(keys, members, strict=True)
        ]
        return ScannedShard(size, None, samples)

    def stop(self) -> None:
        """Cancel all downloads."""
        self._stopped.set()


def scan_stream(chunks: Iterator[bytes], layout: SampleLayout) -> ScannedShard:
    """Hash a shard and check its samples, in one pass over its bytes.

    Args:
        chunks: consecutive parts of the shard, of any size.
        layout: the members that each sample must have.

    Raises:
        BrokenStreamError: the source of the chunks failed.
    """
    stream = ShardStream(chunks)
    samples, problem = list[ScannedSample](), ""
    try:
        samples = scan_samples(stream, layout, quick=False)
    except tarfile.TarError as error:
        problem = _incomplete(error)
    return ScannedShard(*stream.finish(), samples, problem)


def split_remedy(error: InputError | RunError) -> tuple[str, str]:
    """Return the problem that an error names, and its last sentence, which is the remedy."""
    problem, _, remedy = str(error).rpartition(". ")
    return problem or remedy, remedy


def _incomplete(error: Exception) -> str:
    return f"this is not a complete tar file: {error}"
