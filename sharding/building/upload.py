"""Remote destinations: a set is built in a local staging folder, then uploaded, its manifest last.

Readers refuse a set without manifest, so an upload is complete or not there at all. Before its first shard goes a
marker that says whose upload has begun: the same set's upload goes on behind it, another set's is refused. A store
shows an object when all of it has arrived, so an object of the right size behind the own marker need not go again.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfield.common.addresses import format_address
from upfield.common.errors import InputError, RunError, ShardSetError
from upfield.common.files import atomic_path, user_cache_folder
from upfield.common.progress import say, track
from upfield.sharding.shardset.manifest import FORMAT, MANIFEST, VERSION, Manifest, read_manifest
from upfield.sharding.shardset.shard_index import SUFFIXES, ShardEntry

MARKER = ".upload.json"
MARKER_FORMAT = "upfield-upload"
# Beyond this the network is the limit. Shards are read in parts of this size (S3 takes 10000 of them), which together
# bound the memory: s3fs reads 10 parts of 50 MiB of each file otherwise.
NUM_UPLOADS = 4
PART_BYTES, PARTS_AT_ONCE = 16 * 2**20, 2
# fsspec can POST to these, which is not writing a file.
READ_ONLY = ("http", "https")


def staging_folder(url: str) -> Path:
    """Give the local folder in which the set for `url` is built: the same one for the same URL, not made here."""
    plain = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", format_address(plain).partition("://")[2])[-60:].strip("-.")
    return user_cache_folder("staging") / f"{readable}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"


def fetch_manifest(url: str, staging: Path) -> bool:
    """Bring the manifest of a complete remote set into the staging folder, before anything is built there.

    A staging folder that holds shards is the work of an earlier call and stays as it is, if it still fits what is
    there; in one without shards the manifest becomes what the remote has, which may be none.

    Args:
        url: where the set is to go.
        staging: its staging folder; made if it is missing.

    Returns:
        Whether a complete set is there.

    Raises:
        InputError: no such bucket, access denied, no package for such URLs, or something else than a set is there.
        ShardSetError: the set there is damaged, or is no longer the one that the staged work extends.
        RunError: the store does not answer as it should.
    """
    store = _open(url)
    there = _look(store)
    begun = any(staging.glob("*/*.tar"))
    staged = read_manifest(staging) if begun and (staging / MANIFEST).is_file() else None
    if there.manifest is not None:
        _refuse_missing(store, _entries(there.manifest), there, _staged_sizes(staging, staged) if staged else ())
    if staged:
        _refuse_not_extended(store, staged, there, staging)
    if there.marker and not (staged and staged.data_sha256 == there.marker):
        say(f"{store.url}: holds an unfinished upload of data {there.marker[:12]}; only the same set can go there")
    if not begun:
        if there.manifest is None:
            (staging / MANIFEST).unlink(missing_ok=True)
        else:
            with atomic_path(staging / MANIFEST) as temporary:
                temporary.write_bytes(there.manifest_bytes)
    return there.manifest is not None


def upload_set(staging: Path, url: str) -> None:
    """Upload a complete set, or what the remote lacks of it; the manifest goes last.

    Args:
        staging: folder with the manifest, and those shards that the remote does not hold as part of a set that this
            one extends.
        url: where the set is to go.

    Raises:
        InputError: no such bucket, access denied, no package for such URLs, or something else than a set is there.
        ShardSetError: another set or another set's unfinished upload is there, or a shard is in neither place.
        RunError: the upload broke off; the same call continues it.
    """
    manifest = read_manifest(staging)
    sizes = _staged_sizes(staging, manifest)
    store = _open(url)
    there = _look(store)
    _refuse_not_extended(store, manifest, there, staging)
    _refuse_other_upload(store, manifest, there)
    _refuse_missing(store, _entries(manifest), there, sizes)
    there_already = _trusted(manifest, there)
    waiting = [name for name, size in sizes.items() if name not in there_already or there.sizes.get(name) != size]
    same = (staging / MANIFEST).read_bytes() == there.manifest_bytes
    if waiting or not same:
        if there.marker != manifest.data_sha256:
            store.write(MARKER, _marker(manifest))
        if len(waiting) < len(sizes):
            say(f"{store.url}: {len(sizes) - len(waiting)} of {len(sizes)} files are there already")
        _send(store, staging, waiting)
        _finish(store, staging, manifest)
    else:
        say(f"{store.url}: complete already, nothing to do")
        if MARKER in there.sizes:
            store.remove(MARKER)


def remove_staging(staging: Path) -> None:
    """Remove the staging folder of a set that is uploaded; one that a kill leaves half removed is still of use."""
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != MANIFEST:
            path.unlink()
    # Shards without a manifest would be taken for something that is not ours.
    (staging / MANIFEST).unlink(missing_ok=True)
    staging.rmdir()


@dataclass(frozen=True)
class _There:
    """What the remote folder holds."""

    sizes: dict[str, int]
    """Bytes of each object, by its name below the folder."""
    manifest: Manifest | None
    """Of a complete set."""
    manifest_bytes: bytes
    """The same as stored; empty where there is none."""
    marker: str | None
    """`data_sha256` of an upload that has begun and not ended."""


@dataclass(frozen=True)
class _Store:
    """A folder of a remote file system; errors come out as ours and name the URL."""

    fs: Any
    """The fsspec file system."""
    root: str
    """The folder in it, without a slash at the end."""
    url: str
    """To show."""

    def list(self) -> dict[str, int]:
        """Give the bytes of each object by its name below the folder."""
        with self._errors("listing"):
            self.fs.invalidate_cache()
            found = self.fs.find(self.root, detail=True)
            # fsspec answers a later question about one object from its listing, even where that is outdated.
            self.fs.invalidate_cache()
        names = {path.removeprefix(f"{self.root}/"): info["size"] for path, info in found.items()}
        # Consoles mark an empty folder with an object whose name ends in a slash.
        return {name: size for name, size in names.items() if name and not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Read a small object; None where there is none."""
        with self._errors(f"reading {name}"):
            try:
                return self.fs.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small object."""
        with self._errors(f"writing {name}"):
            self.fs.pipe_file(f"{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove an object that no reader needs; say so where that fails."""
        try:
            with self._errors(f"removing {name}"):
                self.fs.rm_file(f"{self.root}/{name}")
        except (InputError, RunError) as error:
            say(f"{error}; the set is complete, delete {self.url}/{name} yourself")

    def put(self, path: Path, name: str) -> None:
        """Send a file, and check that all of it has arrived."""
        parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE} if "s3" in self.fs.protocol else {}
        with self._errors(f"sending {name}"):
            self.fs.put_file(str(path), f"{self.root}/{name}", **parts)
            found = self.fs.info(f"{self.root}/{name}")["size"]
        if found != path.stat().st_size:
            raise RunError(
                f"{self.url}/{name}: expected {path.stat().st_size} bytes after sending, found {found}; "
                "run the same command again"
            )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Each store's client has errors of its own, and none of them is ours to import.
            said = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError) and error.filename is None:
                raise InputError(
                    f"{self.url}: expected a bucket or folder that exists, found none while {doing} ({said}); "
                    "create it, or check --out"
                ) from error
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                raise InputError(
                    f"{self.url}: expected leave to list, read and write there, found none while {doing} ({said}); "
                    "check the credentials and the bucket's policy"
                ) from error
            raise RunError(
                f"{self.url}: {doing} failed ({said}); mend the connection and run the same command again, "
                "what is finished is kept"
            ) from error


def _open(url: str) -> _Store:
    import fsspec

    scheme = url.partition("://")[0]
    if scheme in READ_ONLY:
        raise InputError(f"{format_address(url)}: expected a store to write to (s3://, gs://, ...), found {scheme}://")
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = "'upfield[s3]'" if scheme in ("s3", "s3a") else "the package that it names"
        raise InputError(
            f"{format_address(url)}: expected a package for {scheme}://, found none ({error}); pip install {package}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{format_address(url)}: expected a URL such as s3://bucket/set, found none: {error}"
        ) from error
    root = root.rstrip("/")
    if not root:
        raise InputError(
            f"{format_address(url)}: expected a bucket and a folder, found none; give s3://bucket/set or alike"
        )
    return _Store(fs, root, format_address(url.rstrip("/")))


def _look(store: _Store) -> _There:
    """Find out what the remote folder holds; raise InputError where that is nothing of ours."""
    sizes = store.list()
    data = store.read(MANIFEST) if MANIFEST in sizes else None
    manifest = None if data is None else _parse_manifest(store, data)
    marker = _parse_marker(store, store.read(MARKER) if MARKER in sizes else None)
    if manifest is not None and marker == manifest.data_sha256:
        # That upload was killed after its manifest and before its marker was removed: it is complete.
        marker = None
    elif sizes and manifest is None and marker is None:
        raise InputError(
            f"{store.url}: expected an empty folder or a shard set, found {min(sizes)} among {len(sizes)} objects; "
            "choose another --out"
        )
    return _There(sizes, manifest, data or b"", marker)


def _parse_manifest(store: _Store, data: bytes) -> Manifest:
    tree = {}
    try:
        tree = json.loads(data)
        found = f"{tree['format']} version {tree['version']}"
    except (ValueError, KeyError, TypeError):
        found = "something else"
    if found != f"{FORMAT} version {VERSION}":
        raise ShardSetError(
            f"{store.url}/{MANIFEST}: expected {FORMAT} version {VERSION}, found {found}; choose another --out"
        )
    return Manifest(tree)


def _marker(manifest: Manifest) -> bytes:
    return json.dumps({"format": MARKER_FORMAT, "data_sha256": manifest.data_sha256}).encode()


def _parse_marker(store: _Store, data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        tree = json.loads(data)
        if tree["format"] == MARKER_FORMAT:
            return str(tree["data_sha256"])
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{store.url}/{MARKER}: expected an upload's marker, found something else; choose another --out")


def _entries(manifest: Manifest) -> list[ShardEntry]:
    return [entry for split in manifest.tree["splits"] for entry in manifest.shards(split)]


def _files(entries: Iterable[ShardEntry]) -> list[str]:
    return [f"{entry.name}{suffix}" for entry in entries for suffix in SUFFIXES]


def _staged_sizes(staging: Path, manifest: Manifest) -> dict[str, int]:
    """Give the bytes of those files of a set that are in the staging folder."""
    sizes = {name: (staging / name).stat().st_size for name in _files(_entries(manifest)) if (staging / name).is_file()}
    for entry in _entries(manifest):
        if (found := sizes.get(f"{entry.name}.tar", entry.bytes)) != entry.bytes:
            raise ShardSetError(
                f"{staging / entry.name}.tar: expected {entry.bytes} bytes as the manifest says, found {found}; "
                "delete this staging folder and run the same command again"
            )
    return sizes


def _refuse_not_extended(store: _Store, manifest: Manifest, there: _There, staging: Path) -> None:
    """Raise ShardSetError where a set is there that has shards which this one has not."""
    ours = {entry.name: entry.sha256 for entry in _entries(manifest)}
    for entry in _entries(there.manifest) if there.manifest else ():
        if ours.get(entry.name) != entry.sha256:
            raise ShardSetError(
                f"{store.url}: expected a set that this one extends, found another: its {entry.name}.tar is not in "
                "this one; choose another --out, or, if the set there was extended meanwhile, delete "
                f"{staging} and run the same command again"
            )


def _refuse_other_upload(store: _Store, manifest: Manifest, there: _There) -> None:
    """Raise ShardSetError where another upload has begun, or shards lie about that nothing accounts for."""
    if there.marker not in (None, manifest.data_sha256):
        rest = "everything that its manifest does not list" if there.manifest else "everything there"
        raise ShardSetError(
            f"{store.url}: expected no other upload, found one of data {there.marker[:12]} unfinished, this one is "
            f"{manifest.data_sha256[:12]}; finish it with its own command, or delete {rest}, or choose another --out"
        )
    known = _trusted(manifest, there) | set(_files(_entries(there.manifest)) if there.manifest else ())
    folders = tuple(f"{split}/" for split in manifest.tree["splits"])
    if strays := sorted(name for name in there.sizes if name.startswith(folders) and name not in known):
        raise ShardSetError(
            f"{store.url}: expected only the shards that its manifest lists, found {strays[0]} among "
            f"{len(strays)} others; delete them, or choose another --out"
        )


def _refuse_missing(store: _Store, entries: list[ShardEntry], there: _There, have: Iterable[str]) -> None:
    """Raise ShardSetError where a file is neither among those we have nor whole on the remote."""
    tar_sizes = {f"{entry.name}.tar": entry.bytes for entry in entries}
    for name in sorted(set(_files(entries)) - set(have)):
        found = there.sizes.get(name)
        if found is None or found != tar_sizes.get(name, found):
            expected = f"{tar_sizes[name]} bytes" if name in tar_sizes else "a shard's index"
            raise ShardSetError(
                f"{store.url}/{name}: expected {expected}, found {'none' if found is None else f'{found} bytes'}; "
                "the set there is damaged: restore the file, or choose another --out"
            )


def _trusted(manifest: Manifest, there: _There) -> set[str]:
    """Give the names of files whose contents on the remote are known, if they have the right size."""
    if there.marker == manifest.data_sha256:
        return set(_files(_entries(manifest)))
    return set(_files(_entries(there.manifest))) if there.manifest else set()


def _send(store: _Store, staging: Path, names: list[str]) -> None:
    # File systems that are not asynchronous inside promise nothing about threads.
    with ThreadPoolExecutor(NUM_UPLOADS if store.fs.async_impl else 1) as pool:
        uploads = [pool.submit(store.put, staging / name, name) for name in names]
        try:
            for upload in track(as_completed(uploads), f"upload to {store.url}", len(uploads)):
                upload.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _finish(store: _Store, staging: Path, manifest: Manifest) -> None:
    """Put the manifest, unless another upload came in between."""
    marker = _parse_marker(store, store.read(MARKER))
    if marker is None and store.read(MANIFEST) == (staging / MANIFEST).read_bytes():
        return  # The same command on another machine was faster: equal shards, equal manifest.
    if marker != manifest.data_sha256:
        found = "none" if marker is None else "another upload's"
        raise RunError(
            f"{store.url}: expected this upload's marker, found {found}: another command writes there; no manifest was "
            "written; let one at a time write there, and run this one again"
        )
    store.put(staging / MANIFEST, MANIFEST)
    store.remove(MARKER)
