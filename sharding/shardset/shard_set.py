"""Open a finished shard set, which is in a folder or at an address."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from upfield.common.addresses import format_address, is_address, is_remote
from upfield.common.errors import InputError, ShardSetError, expect_choice, refused_arguments
from upfield.common.files import make_writable_folder, user_cache_folder
from upfield.common.stores.store import Store
from upfield.sharding.shardset.configuration import AccessConfig
from upfield.sharding.shardset.manifest import Manifest, read_manifest
from upfield.sharding.shardset.remote.remote_files import RemoteFiles, RemoteFolder
from upfield.sharding.shardset.remote.remote_samples import open_samples
from upfield.sharding.shardset.remote.shard_cache import ShardCache
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_files import LocalFiles, ShardFiles
from upfield.sharding.shardset.shard_list import expand_shard_list, is_shard_list, select_shards
from upfield.sharding.shardset.split_reader import SplitReader


@dataclass(frozen=True)
class ShardSet:
    """A shard set whose manifest has been read.

    Examples:
        >>> import upfield
        >>> shards = upfield.open_shards("shards")
        >>> shards
        ShardSet(shards: 180 train, 20 val, 20 test)
        >>> [subject["subject"] for subject in shards.manifest.subjects("test")]
        ['sub-02']
    """

    name: str
    """Folder or address of the set, for messages."""
    manifest: Manifest
    """Manifest of the set."""
    files: ShardFiles
    """Access to the files of the set."""
    place: str | Path
    """The folder, the address or the list of shards by which the set was opened."""
    access: AccessConfig
    """How the files of a remote set are downloaded and cached."""

    def __repr__(self) -> str:
        """Return the place of the set and the number of pairs of slices in each split."""
        sizes = {name: sum(entry.samples for entry in self.manifest.shards(name)) for name in SPLITS}
        return f"ShardSet({self.name}: {', '.join(f'{size} {name}' for name, size in sizes.items())})"

    @property
    def is_remote(self) -> bool:
        """Whether the files of the set are downloaded."""
        return not isinstance(self.files, LocalFiles)

    def split(self, split: str) -> SplitReader:
        """Open a split, `train`, `val` or `test`. This reads only its indices.

        Raises:
            ShardSetError: there is no such split, or an index is missing or contradicts the manifest.
            FetchError: an index could not be downloaded.
        """
        known = self.manifest.tree["splits"]
        if split not in known:
            raise ShardSetError(f"{self.name}: there is no split {split}. Choose one of {', '.join(known)}.")
        return SplitReader(self.name, split, self.manifest, self.files)


class KeywordAccess(AccessConfig):
    """Access to a remote set that is given by keyword arguments, so messages call them by their names alone."""

    def flag(self, name: str) -> str:
        """Return the name of a keyword argument."""
        return name


def open_shards(
    shards: str | Path,
    *,
    cache_dir: str | Path | None = None,
    cache_bytes: int = AccessConfig.cache_bytes,
    fetch: Literal["shards", "samples"] = "shards",
    fetch_retries: int = AccessConfig.fetch_retries,
    fetch_timeout_s: float = AccessConfig.fetch_timeout_s,
    fetch_command: str | None = None,
) -> ShardSet:
    """Open a shard set. This reads only its manifest.

    Args:
        shards: folder or address of the set, such as `s3://bucket/set`.
        cache_dir: folder for the downloaded shards of a remote set; by default `~/.cache/upfield/shards`.
        cache_bytes: maximum size of this folder in bytes. The least recently used shards are removed first.
        fetch: `shards` downloads whole shards and keeps them. `samples` downloads single samples and keeps none.
        fetch_retries: number of retries if a download fails.
        fetch_timeout_s: time in seconds after which a transfer that receives no data is tried again.
        fetch_command: command that downloads a file to its standard output, such as `s5cmd cat {url}`.

    Raises:
        InputError: there is no complete set, or the address or an argument cannot be used.
        RunError: the store does not respond correctly.

    Examples:
        >>> import upfield
        >>> shards = upfield.open_shards("shards")
        >>> pair = next(shards.split("train").slices())
        >>> pair.low.shape, pair.high.shape
        ((1, 24, 28), (1, 24, 28))
    """
    expect_choice("fetch", fetch, ("shards", "samples"))
    with refused_arguments():
        access = KeywordAccess(
            cache_dir=None if cache_dir is None else Path(cache_dir),
            cache_bytes=cache_bytes,
            fetch=fetch,
            fetch_retries=fetch_retries,
            fetch_timeout_s=fetch_timeout_s,
            fetch_command=fetch_command,
        )
    return open_set(shards, access)


def open_set(shards: str | Path, access: AccessConfig) -> ShardSet:
    """Read the manifest of a shard set.

    Args:
        shards: folder or address of the set, or a list of its training shards, to which the training split is then
            limited.
        access: how the files of a remote set are downloaded and cached.

    Raises:
        InputError: there is no complete set, the address cannot be used, or single samples cannot be fetched from it.
        RunError: a store does not respond correctly.
    """
    place = str(shards)
    if is_shard_list(place):
        root, names = expand_shard_list(place)
        shard_set = open_set(root, access)
        return replace(shard_set, manifest=select_shards(shard_set.manifest, names, place), place=shards)
    if not is_remote(place):
        folder = local_folder(place, access)
        return ShardSet(str(folder), read_manifest(folder), LocalFiles(folder), shards, access)
    remote = open_remote_folder(place, access)
    flag = access.flag("cache_dir")
    # The home folder is not looked at if the user named a folder.
    cache_dir = access.cache_dir or user_cache_folder("shards", f"Set {flag}.")
    make_writable_folder(cache_dir, flag)
    cache = ShardCache(cache_dir, access.cache_bytes, access.flag(""))
    files, manifest = RemoteFiles(remote, cache), remote.manifest()
    if access.fetch == "samples":
        files = open_samples(files, manifest, access.flag("fetch"))
    return ShardSet(remote.store.name, manifest, files, shards, access)


def local_folder(shards: str | Path, access: AccessConfig) -> Path:
    """Return the folder of a set on this machine.

    Raises:
        InputError: the folder is written as an address, such as `file:///data/shards`, or a command should download it.
    """
    if access.fetch_command is not None:
        raise InputError(
            f"{access.flag('fetch_command')}: the set {shards} is in a folder, so nothing is downloaded. Leave the "
            f"command out, or name an address with {access.flag('shards')}."
        )
    if is_address(str(shards)):
        raise InputError(f"{shards}: this is a folder of this machine. Write its path without the scheme.")
    return Path(shards)


def open_remote_folder(address: str, access: AccessConfig) -> RemoteFolder:
    """Return the folder of a set at an address. Nothing is downloaded yet.

    Args:
        address: address of the set.
        access: how its files are downloaded.

    Raises:
        InputError: the address has one slash, or contains a password or a signature.
    """
    if format_address(address) != address:
        raise InputError(
            f"{format_address(address)}: write the address with two slashes and without a password or a part "
            "after `?`, because reports and the files of runs contain the address. Set passwords in the store's own "
            "variables or in fsspec's configuration."
        )
    return RemoteFolder(
        Store(address, access.fetch_timeout_s, access.fetch_command), access.fetch_retries, access.flag("shards")
    )
