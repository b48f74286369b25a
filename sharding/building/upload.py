"""Upload a shard set to a remote store. The set is built in a local staging folder and sent from there.

The manifest is sent last, and readers refuse a set without one, so the store holds a complete set or none. Before the
first shard, a marker that names the set is written. While the marker is there, only the same set can be uploaded to
this address. Stores show an object only after all of it has arrived. So if the marker names this set, objects of the
right size are not sent again. The indices of the splits have other names after each extension, so a reader of the old
manifest still finds its own; old ones stay in the store.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from upfield.common.addresses import format_address
from upfield.common.errors import InputError, RunError, ShardSetError
from upfield.common.files import atomic_path, user_cache_folder, write_bytes
from upfield.common.progress import say, track
from upfield.common.stores.store import Store
from upfield.common.tables import counted
from upfield.sharding.shardset.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from upfield.sharding.shardset.shard_index import ShardEntry

MARKER = ".upload.json"
MARKER_FORMAT = "upfield-upload"
# With more uploads at the same time, the network is the limit.
NUM_UPLOADS = 4
# fsspec can send POST requests to these addresses, but that does not write a file.
READ_ONLY = ("http", "https")


@dataclass(frozen=True)
class RemoteContents:
    """The contents of the remote folder."""

    sizes: dict[str, int]
    """Size of each object in bytes, by its name below the folder."""
    manifest: Manifest | None
    """Manifest of the complete set there, if there is one."""
    manifest_bytes: bytes
    """The manifest as stored; empty if there is none."""
    marker: str | None
    """`data_sha256` of an unfinished upload, if there is one."""


def staging_folder(url: str) -> Path:
    """Return the local folder in which the set for `url` is built. It depends on `url` alone, and may not exist yet.

    Raises:
        InputError: the user has no cache folder.
    """
    plain = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", format_address(plain).partition("://")[2])[-60:].strip("-.")
    return user_cache_folder("staging") / f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"


def fetch_manifest(url: str, staging: Path) -> bool:
    """Copy the manifest of a complete remote set into the staging folder, before anything is built there.

    A staging folder with shards is the work of an earlier call. It stays as it is if it still fits the remote set. In a
    staging folder without shards, the manifest is replaced by the remote one, or removed if there is none.

    Args:
        url: address that the set will be sent to.
        staging: its staging folder; created if it is missing.

    Returns:
        Whether the address holds a complete set.

    Raises:
        InputError: the address cannot be opened, access is denied, or the folder holds something other than a set.
        ShardSetError: the remote set is damaged, or it is no longer the set that the staged work extends.
        RunError: the store does not respond, or responds with an error.
    """
    store = open_destination(url)
    contents = _read_contents(store)
    begun = any(staging.glob("*/*.tar"))
    staged = read_manifest(staging) if begun and (staging / MANIFEST).is_file() else None
    if contents.manifest is not None:
        _refuse_missing(store, contents.manifest, contents, _staged_sizes(staging, staged) if staged else ())
    if staged:
        _refuse_not_extended(store, staged, contents, staging)
    if contents.marker and not (staged and staged.data_sha256 == contents.marker):
        say(
            f"{store.name}: an unfinished upload of data {contents.marker[:12]} is there; "
            "only the same set can be sent to this address"
        )
    if not begun:
        if contents.manifest is None:
            (staging / MANIFEST).unlink(missing_ok=True)
        else:
            with atomic_path(staging / MANIFEST) as temporary:
                temporary.write_bytes(contents.manifest_bytes)
    if extended := staged or contents.manifest:
        _copy_indices(store, extended, staging)
    return contents.manifest is not None


def upload_set(staging: Path, url: str) -> None:
    """Upload a complete set, or the part of it that the remote folder lacks. The manifest is sent last.

    Args:
        staging: folder with the manifest and the shards. Shards may be missing if the remote folder already holds them
            as part of a set that this one extends.
        url: address to send the set to.

    Raises:
        InputError: the address cannot be opened, access is denied, or the folder holds something other than a set.
        ShardSetError: another set or its unfinished upload is there, or a shard is in neither of the two folders.
        RunError: the upload was interrupted; the same call continues it.
    """
    manifest = read_manifest(staging)
    sizes = _staged_sizes(staging, manifest)
    store = open_destination(url)
    contents = _read_contents(store)
    _refuse_not_extended(store, manifest, contents, staging)
    _refuse_other_upload(store, manifest, contents)
    _refuse_missing(store, manifest, contents, sizes)
    known = _known_names(manifest, contents)
    waiting = [name for name, size in sizes.items() if name not in known or contents.sizes.get(name) != size]
    same = (staging / MANIFEST).read_bytes() == contents.manifest_bytes
    if waiting or not same:
        if contents.marker != manifest.data_sha256:
            store.write(MARKER, _marker_bytes(manifest))
        if len(waiting) < len(sizes):
            say(f"{store.name}: {len(sizes) - len(waiting)} of {len(sizes)} files are already there")
        _send_files(store, staging, waiting)
        _send_manifest(store, staging, manifest)
    else:
        say(f"{store.name}: already complete, nothing to send")
        if MARKER in contents.sizes:
            _remove_marker(store)


def remove_staging(staging: Path) -> None:
    """Remove the staging folder of an uploaded set. If interrupted, it leaves a folder that is still valid."""
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MANIFEST:
            path.unlink()
    # The manifest is removed last, because a folder of shards without a manifest would be refused.
    (staging / MANIFEST).unlink(missing_ok=True)
    staging.rmdir()


def open_destination(url: str) -> Store:
    """Open an address that a set will be sent to.

    Raises:
        InputError: the address can only be read, names no folder, or needs a package that is missing.
    """
    scheme = url.partition("://")[0]
    if scheme in READ_ONLY:
        raise InputError(
            f"{format_address(url)}: {scheme}:// addresses can only be read. "
            "Choose a store that can be written, such as s3:// or gs://."
        )
    store = Store(url)
    if not store.root:
        raise InputError(
            f"{format_address(url)}: the address names no bucket or folder. Choose one such as s3://bucket/set."
        )
    return store


def _read_contents(store: Store) -> RemoteContents:
    """Read the contents of the remote folder; raise InputError if they are not a shard set or a part of one."""
    sizes = store.list_sizes()
    data = store.read(MANIFEST) if MANIFEST in sizes else None
    manifest = None if data is None else parse_manifest(data, f"{store.name}/{MANIFEST}")
    marker = _parse_marker(store, store.read(MARKER) if MARKER in sizes else None)
    if manifest is not None and marker == manifest.data_sha256:
        # The upload was killed after it sent the manifest and before it removed the marker, so the set is complete.
        marker = None
    elif sizes and manifest is None and marker is None:
        raise InputError(
            f"{store.name}: the folder is neither empty nor a shard set; it holds {min(sizes)} among {len(sizes)} "
            "objects. Choose another --out."
        )
    return RemoteContents(sizes, manifest, data or b"", marker)


def _marker_bytes(manifest: Manifest) -> bytes:
    return json.dumps({"format": MARKER_FORMAT, "data_sha256": manifest.data_sha256}).encode()


def _parse_marker(store: Store, data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        tree = json.loads(data)
        if tree["format"] == MARKER_FORMAT:
            return str(tree["data_sha256"])
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{store.name}/{MARKER}: this is not the marker of an upload. Choose another --out.")


def _entries(manifest: Manifest) -> list[ShardEntry]:
    return [entry for split in manifest.tree["splits"] for entry in manifest.shards(split)]


def _listed_sizes(manifest: Manifest) -> dict[str, int | None]:
    """Return the size in bytes of each file of a set; None for the indices of shards, whose sizes are not listed."""
    sizes: dict[str, int | None] = {}
    for split in manifest.tree["splits"]:
        for entry in manifest.shards(split):
            sizes |= {f"{entry.name}.tar": entry.bytes, f"{entry.name}.idx": None}
        if index := manifest.index(split):
            sizes[index.name] = index.bytes
    return sizes


def _copy_indices(store: Store, manifest: Manifest, staging: Path) -> None:
    """Copy those indices of splits that the staging folder lacks: those of the extended set are made from them."""
    for index in [index for split in manifest.tree["splits"] if (index := manifest.index(split))]:
        if not (staging / index.name).is_file() and (data := store.read(index.name)) is not None:
            write_bytes(staging / index.name, data)


def _staged_sizes(staging: Path, manifest: Manifest) -> dict[str, int]:
    """Return the sizes in bytes of those files of a set that are in the staging folder."""
    listed = _listed_sizes(manifest)
    sizes = {name: (staging / name).stat().st_size for name in listed if (staging / name).is_file()}
    for name, size in sizes.items():
        if (expected := listed[name]) not in (None, size):
            raise ShardSetError(
                f"{staging / name}: expected {expected} bytes as in the manifest, found {size}. "
                "Delete this staging folder and run the same command again."
            )
    return sizes


def _refuse_not_extended(store: Store, manifest: Manifest, contents: RemoteContents, staging: Path) -> None:
    """Raise ShardSetError if the remote set has shards that this set does not have."""
    ours = {entry.name: entry.sha256 for entry in _entries(manifest)}
    for entry in _entries(contents.manifest) if contents.manifest else ():
        if ours.get(entry.name) != entry.sha256:
            raise ShardSetError(
                f"{store.name}: another shard set is there; its {entry.name}.tar is not in this set. Choose another "
                f"--out, or, if the set there has been extended since, delete {staging} and run the same command again."
            )


def _refuse_other_upload(store: Store, manifest: Manifest, contents: RemoteContents) -> None:
    """Raise ShardSetError if another upload has begun, or if there are shards that belong to no known set."""
    if contents.marker not in (None, manifest.data_sha256):
        rest = "everything that its manifest does not list" if contents.manifest else "everything there"
        raise ShardSetError(
            f"{store.name}: an unfinished upload of data {contents.marker[:12]} is there, but this set has data "
            f"{manifest.data_sha256[:12]}. Finish that upload with its own command, delete {rest}, or choose another "
            "--out."
        )
    listed = _listed_sizes(contents.manifest) if contents.manifest else {}
    known = _known_names(manifest, contents).union(listed)
    folders = tuple(f"{split}/" for split in manifest.tree["splits"])
    if strays := sorted(name for name in contents.sizes if name.startswith(folders) and name not in known):
        raise ShardSetError(
            f"{store.name}: found {counted(len(strays), 'file')} that no known set contains, such as {strays[0]}. "
            "Delete them, or choose another --out."
        )


def _refuse_missing(store: Store, manifest: Manifest, contents: RemoteContents, staged: Iterable[str]) -> None:
    """Raise ShardSetError if a file is neither in the staging folder nor complete in the remote folder."""
    listed = _listed_sizes(manifest)
    for name in sorted(listed.keys() - set(staged)):
        size, expected = contents.sizes.get(name), listed[name]
        if size is None or expected not in (None, size):
            what = "the index of a shard" if expected is None else f"{expected} bytes"
            raise ShardSetError(
                f"{store.name}/{name}: expected {what}, found {'no file' if size is None else f'{size} bytes'}. "
                "The set there is damaged: restore the file, or choose another --out."
            )


def _known_names(manifest: Manifest, contents: RemoteContents) -> set[str]:
    """Return the names of files that need not be sent if the remote folder has copies of the right size."""
    if contents.marker == manifest.data_sha256:
        return set(_listed_sizes(manifest))
    return set(_listed_sizes(contents.manifest)) if contents.manifest else set()


def _send_files(store: Store, staging: Path, names: list[str]) -> None:
    with ThreadPoolExecutor(NUM_UPLOADS if store.takes_threads else 1) as pool:
        uploads = [pool.submit(store.send, staging / name, name) for name in names]
        try:
            for upload in track(as_completed(uploads), f"upload to {store.name}", len(uploads)):
                upload.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _send_manifest(store: Store, staging: Path, manifest: Manifest) -> None:
    """Send the manifest and remove the marker. Raise RunError if the marker no longer names this set."""
    marker = _parse_marker(store, store.read(MARKER))
    if marker is None and store.read(MANIFEST) == (staging / MANIFEST).read_bytes():
        return  # The same command on another machine finished first. Its shards and manifest are equal to ours.
    if marker != manifest.data_sha256:
        change = "has disappeared" if marker is None else "was replaced by that of another upload"
        raise RunError(
            f"{store.name}: the marker of this upload {change}, so another command also writes there; the manifest was "
            "not sent. Run only one command at a time, and start this one again."
        )
    store.send(staging / MANIFEST, MANIFEST)
    _remove_marker(store)


def _remove_marker(store: Store) -> None:
    """Remove the marker of a complete upload. Readers ignore the marker, so a failure is only reported."""
    try:
        store.remove(MARKER)
    except (InputError, RunError) as error:
        say(f"{error} The set is complete. Delete {store.name}/{MARKER} yourself.")
