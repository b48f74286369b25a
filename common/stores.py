"""Open remote stores, and translate their errors into messages that name the address.

`Store` is a folder at an address, opened with fsspec. Training reads shard sets from it, and `upfield shard` sends them
to it. Ray opens the storage of a sweep with Arrow. Code that must find the same files uses `*_with_arrow`.
"""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upfield.common.addresses import format_address
from upfield.common.errors import InputError, RunError

POLL_S = 0.1
STALL_S = 60.0
# A file is sent in parts of this size, and S3 accepts 10,000 parts. The two values limit the memory that a transfer
# uses: by default, s3fs holds 10 parts of 50 MiB of each file.
PART_BYTES, PARTS_AT_ONCE = 16 * 2**20, 2
PACKAGES = {"s3": "'upfield[s3]'", "s3a": "'upfield[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp"}
PACKAGES |= {"https": "aiohttp", "az": "adlfs", "abfs": "adlfs"}
NEVER = threading.Event()


class TransferCancelledError(Exception):
    """The caller cancelled a transfer."""


class Store:
    """A folder at an address. Each process opens its own client, because fsspec's clients do not work after a fork."""

    def __init__(self, address: str, timeout_s: float = STALL_S) -> None:
        """Remember the address; nothing is opened yet.

        Args:
            address: address of the folder, such as `s3://bucket/set`.
            timeout_s: time in seconds after which `fetch` fails if no byte arrives.
        """
        scheme, _, folder = address.partition("://")
        self.address = f"{scheme}://{folder.rstrip('/')}"
        self.timeout_s = timeout_s
        # Clients by process id. A forked process keeps its parent's client, because closing the client would wait for
        # threads that a fork does not copy.
        self._clients: dict[int, tuple[Any, str]] = {}

    @property
    def name(self) -> str:
        """The address as messages show it."""
        return format_address(self.address)

    @property
    def root(self) -> str:
        """The folder's path in the store, without a slash at the end.

        Raises:
            InputError: the address cannot be opened.
        """
        return self._client()[1]

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may transfer files at once. fsspec guarantees this for asynchronous clients only.

        Raises:
            InputError: the address cannot be opened.
        """
        return self._client()[0].async_impl

    def list_sizes(self) -> dict[str, int]:
        """Return a dictionary from the name of each object below the folder to its size in bytes.

        Raises:
            InputError: the address cannot be opened, access is denied, or there is no such bucket.
            RunError: the request fails for another reason.
        """
        client, root = self._client()
        with store_errors(self.name, "listing"):
            client.invalidate_cache()
            objects = client.find(root, detail=True)
            # Otherwise fsspec would look up single objects in this listing later, when it may be outdated.
            client.invalidate_cache()
        sizes = {path.removeprefix(f"{root}/"): info["size"] for path, info in objects.items()}
        # Consoles mark an empty folder with an object whose name ends in a slash.
        return {name: size for name, size in sizes.items() if name and not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Read a small object. Return None if it does not exist.

        Raises:
            InputError: access is denied.
            RunError: the request fails for another reason.
        """
        client, root = self._client()
        with store_errors(self.name, f"reading {name}"):
            try:
                return client.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small object.

        Raises:
            InputError: access is denied, or there is no such bucket.
            RunError: the request fails for another reason.
        """
        client, root = self._client()
        with store_errors(self.name, f"writing {name}"):
            client.pipe_file(f"{root}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove an object.

        Raises:
            InputError: access is denied, or there is no such object.
            RunError: the request fails for another reason.
        """
        client, root = self._client()
        with store_errors(self.name, f"removing {name}"):
            client.rm_file(f"{root}/{name}")

    def send(self, path: Path, name: str) -> None:
        """Send a file, and check that all of it has arrived.

        Raises:
            InputError: access is denied, or there is no such bucket.
            RunError: the transfer fails, or the object in the store has a different size from the file.
        """
        client, root = self._client()
        parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE} if "s3" in client.protocol else {}
        with store_errors(self.name, f"sending {name}"):
            client.put_file(str(path), f"{root}/{name}", **parts)
            arrived = client.info(f"{root}/{name}")["size"]
        if arrived != path.stat().st_size:
            raise RunError(
                f"{self.name}/{name}: expected {path.stat().st_size} bytes after sending, found {arrived}. "
                "Run the same command again."
            )

    def fetch(self, name: str, path: Path, most_bytes: int | None = None, stopped: threading.Event = NEVER) -> None:
        """Copy an object to a new file on this machine.

        Args:
            name: name of the object below the folder.
            path: path of the new file.
            most_bytes: the transfer fails if more bytes arrive.
            stopped: event that the caller sets to cancel the transfer.

        Raises:
            InputError: the address cannot be opened, or access is denied. A second attempt would fail too.
            TransferCancelledError: `stopped` was set.
            TimeoutError: no byte has arrived for `timeout_s`.
            Exception: any other error of the store's client, unchanged. A second attempt may succeed.
        """
        try:
            self._fetch(name, path, most_bytes, stopped)
        except Exception as error:
            refuse_denied(f"{self.name}/{name}", "reading", "read", error)
            raise

    def _fetch(self, name: str, path: Path, most_bytes: int | None, stopped: threading.Event) -> None:
        from fsspec.callbacks import Callback

        client, root = self._client()
        if not client.async_impl:
            # The transfer of a synchronous client cannot be cancelled. The client may have its own time limits.
            client.get_file(f"{root}/{name}", str(path))
            return
        arrived = Callback()
        # One part at a time and in order is fast enough, because many shards are fetched at once.
        options = {"max_concurrency": 1} if "s3" in client.protocol else {}
        coroutine = client._get_file(f"{root}/{name}", str(path), callback=arrived, **options)
        transfer = asyncio.run_coroutine_threadsafe(coroutine, client.loop)
        try:
            self._watch(transfer, arrived, most_bytes, stopped)
        finally:
            transfer.cancel()
        transfer.result()

    def _watch(self, transfer: "Future[Any]", arrived: Any, most_bytes: int | None, stopped: threading.Event) -> None:
        """Wait for a transfer. Raise an error if it stalls, if too many bytes arrive, or if the caller cancels it."""
        before, since_s = 0, time.monotonic()
        while not wait([transfer], POLL_S).done:
            if stopped.is_set():
                raise TransferCancelledError
            if most_bytes is not None and arrived.value > most_bytes:
                raise ValueError(f"more than {most_bytes} bytes")
            if arrived.value != before:
                before, since_s = arrived.value, time.monotonic()
            elif time.monotonic() - since_s > self.timeout_s:
                raise TimeoutError(f"no data for {self.timeout_s:g} s after {before} bytes")

    def _client(self) -> tuple[Any, str]:
        if os.getpid() not in self._clients:
            self._clients[os.getpid()] = open_with_fsspec(self.address)
        return self._clients[os.getpid()]


@contextmanager
def store_errors(place: str, doing: str) -> Iterator[None]:
    """Raise InputError or RunError, which name the address, for errors of a store's client.

    Args:
        place: address that the message names.
        doing: operation that may fail, such as `reading`.
    """
    try:
        yield
    except Exception as error:
        refuse_denied(place, doing, "list, read and write", error)
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise InputError(
                f"{place}: no such bucket or folder; {doing} failed ({describe_error(error)}). "
                "Create it, or check the address."
            ) from error
        raise RunError(
            f"{place}: {doing} failed ({describe_error(error)}). "
            "Check the connection and run the same command again; it continues from here."
        ) from error


def refuse_denied(place: str, doing: str, rights: str, error: Exception) -> None:
    """Raise InputError if an error of a store's client means that access was denied.

    Args:
        place: address that the message names.
        doing: operation that failed, such as `reading`.
        rights: operations that upfield needs there, such as `read`.
        error: error of the client. Each client has error classes of its own, which may not be installed.
    """
    by_store = isinstance(error, PermissionError) and error.filename is None
    if by_store or "Credentials" in type(error).__name__:
        raise InputError(
            f"{place}: permission denied while {doing} ({describe_error(error)}). "
            f"Check the credentials and the bucket's policy: upfield needs to {rights} there."
        ) from error


def is_local(error: Exception) -> bool:
    """Return whether an error comes from this machine's disk and not from the store."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC)


def describe_error(error: Exception) -> str:
    """Return the text of an error on one line, or the name of its class if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def open_with_fsspec(address: str) -> tuple[Any, str]:
    """Open an address. Return fsspec's file system and the path in it, without a slash at the end.

    Raises:
        InputError: the package for this kind of address is not installed, or the address is not valid.
    """
    import fsspec

    scheme = address.partition("://")[0]
    try:
        client, root = fsspec.core.url_to_fs(address, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        remedy = f"Run pip install {PACKAGES[scheme]}." if scheme in PACKAGES else "Install the package that it names."
        raise InputError(
            f"{format_address(address)}: the package for {scheme}:// is missing ({error}). {remedy}"
        ) from error
    except ValueError as error:
        raise _no_address(address, error) from error
    return client, root.rstrip("/")


def open_with_arrow(address: str) -> tuple[Any, str]:
    """Open an address with Arrow, as Ray does. Return Arrow's file system and the path in it.

    Ray reads and writes a sweep's storage with Arrow, which accepts options at the end of the address
    (`s3://bucket/folder?region=eu-central-1`). fsspec does not know these options, so it could open another store.

    Raises:
        InputError: Arrow cannot open the address.
    """
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(address)
    except (OSError, ValueError) as error:
        raise _no_address(address, error) from error


def read_with_arrow(filesystem: Any, path: str, place: str) -> bytes | None:
    """Read a small file. Return None if it does not exist.

    Args:
        filesystem: Arrow's file system.
        path: path of the file in it.
        place: address of the file for messages.

    Raises:
        InputError: access is denied.
        RunError: the request fails for another reason.
    """
    with store_errors(place, "reading"):
        try:
            with filesystem.open_input_file(path) as file:
                return file.readall()
        except FileNotFoundError:
            return None


def write_with_arrow(filesystem: Any, path: str, place: str, data: bytes) -> None:
    """Write a small file, and create its folder.

    Args:
        filesystem: Arrow's file system.
        path: path of the file in it.
        place: address of the file for messages.
        data: content of the file.

    Raises:
        InputError: access is denied, or there is no such bucket.
        RunError: the request fails for another reason.
    """
    with store_errors(place, "writing"):
        # A file system needs the folder before the file is written; an object store creates it with the file.
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(path) as file:
            file.write(data)


def _no_address(address: str, error: Exception) -> InputError:
    return InputError(
        f"{format_address(address)}: this is not an address such as s3://bucket/folder ({describe_error(error)}). "
        "Check the address."
    )


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    # By default, aiohttp ends every transfer after five minutes, even one that makes progress.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None)}}
