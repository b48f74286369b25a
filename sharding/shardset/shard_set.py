"""Open a finished shard set, which is in a folder or at an address."""

from dataclasses import dataclass, replace
from pathlib import Path

from upfield.common.addresses import format_address, is_address, is_remote
from upfield.common.errors import InputError
from upfield.common.files import make_writable_folder, user_cache_folder
from upfield.common.stores.store import Store
from upfield.sharding.configuration import AccessConfig
from upfield.sharding.shardset.manifest import Manifest, read_manifest
from upfield.sharding.shardset.remote.remote_files import RemoteFiles, RemoteFolder
from upfield.sharding.shardset.remote.remote_samples import open_samples
from upfield.sharding.shardset.remote.shard_cache import ShardCache
from upfield.sharding.shardset.shard_files import LocalFiles, ShardFiles
from upfield.sharding.shardset.shard_list import expand_shard_list, is_shard_list, select_shards
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class ShardSet:
    """A shard set whose manifest was read."""

    name: str
    """Folder or address of the set, for messages."""
    manifest: Manifest
    """Manifest of the set."""
    files: ShardFiles
    """Access to the files of the set."""

    @property
    def is_remote(self) -> bool:
        """Whether the files of the set are downloaded."""
        return not isinstance(self.files, LocalFiles)

    def split(self, split: str) -> ShardSplit:
        """Read the indices of a split, `train`, `val` or `test`.

        Raises:
            ShardSetError: an index is missing or contradicts the manifest.
            FetchError: an index could not be fetched.
        """
        return ShardSplit(self.name, split, self.manifest, self.files)


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
        return replace(shard_set, manifest=select_shards(shard_set.manifest, names, place))
    if not is_remote(place):
        folder = local_folder(place, access)
        return ShardSet(str(folder), read_manifest(folder), LocalFiles(folder))
    remote = open_remote_folder(place, access)
    flag = access.flag("cache_dir")
    # The home folder is not looked at if the user named a folder.
    cache_dir = access.cache_dir or user_cache_folder("shards", f"Set {flag}.")
    make_writable_folder(cache_dir, flag)
    cache = ShardCache(cache_dir, access.cache_bytes, access.flag(""))
    files, manifest = RemoteFiles(remote, cache), remote.manifest()
    if access.fetch == "samples":
        return ShardSet(remote.store.name, manifest, open_samples(files, manifest, access.flag("fetch")))
    return ShardSet(remote.store.name, manifest, files)


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
