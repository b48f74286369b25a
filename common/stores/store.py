"""A folder at an address. Training reads shard sets from it, and `upfield shard` sends them to it.

Ray opens the storage of a sweep with Arrow. Code that must find the same files uses `arrow.py` instead.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from upfield.common.addresses import format_address
from upfield.common.errors import RunError
from upfield.common.stores import obstore_client
from upfield.common.stores.byte_ranges import ByteRange, cut_ranges, join_ranges
from upfield.common.stores.command_client import CommandClient
from upfield.common.stores.fsspec_client import FsspecClient, is_configured
from upfield.common.stores.obstore_client import ObstoreClient
from upfield.common.stores.store_errors import refuse_denied, store_errors
from upfield.common.stores.transfer import NEVER, Transfer

STALL_S = 60.0
Client = ObstoreClient | FsspecClient | CommandClient


class Store:
    """A folder at an address. Each process opens its own client, because clients do not work after a fork."""

    def __init__(self, address: str, timeout_s: float = STALL_S, command: str | None = None) -> None:
        """Remember the address; nothing is opened yet.

        Args:
            address: address of the folder, such as `s3://bucket/set`.
            timeout_s: time in seconds after which a download fails if no byte arrives.
            command: command that downloads a file of the folder, with `{url}` in place of its address.
        """
        scheme, _, folder = address.partition("://")
        self.address = f"{scheme}://{folder.rstrip('/')}"
        self.timeout_s = timeout_s
        self.command = command
        # Clients by process id. A forked process keeps its parent's client, because closing the client would wait for
        # threads that a fork does not copy.
        self._clients: dict[int, Client] = {}

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
        return self._client().root

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may transfer files at once.

        Raises:
            InputError: the address cannot be opened.
        """
        return self._client().takes_threads

    def list_sizes(self) -> dict[str, int]:
        """Return a dictionary from the name of each object below the folder to its size in bytes.

        Raises:
            InputError: the address cannot be opened, access is denied, or there is no such bucket.
            RunError: the request fails for another reason.
        """
        client = self._client()
        with store_errors(self.name, "listing"):
            sizes = client.list_sizes()
        # Consoles mark an empty folder with an object whose name ends in a slash.
        return {name: size for name, size in sizes.items() if name and not name.endswith("/")}

    def read(self, name: str) -> bytes | None:
        """Read a small object. Return None if it does not exist.

        Raises:
            InputError: access is denied.
            RunError: the request fails for another reason.
        """
        client = self._client()
        with store_errors(self.name, f"reading {name}"):
            try:
                return client.read(name)
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small object.

        Raises:
            InputError: access is denied, or there is no such bucket.
            RunError: the request fails for another reason.
        """
        client = self._client()
        with store_errors(self.name, f"writing {name}"):
            client.write(name, data)

    def remove(self, name: str) -> None:
        """Remove an object.

        Raises:
            InputError: access is denied, or there is no such object.
            RunError: the request fails for another reason.
        """
        client = self._client()
        with store_errors(self.name, f"removing {name}"):
            client.remove(name)

    def send(self, path: Path, name: str) -> None:
        """Send a file, and check that all of it has arrived.

        Raises:
            InputError: access is denied, or there is no such bucket.
            RunError: the transfer fails, or the object in the store has a different size from the file.
        """
        client = self._client()
        with store_errors(self.name, f"sending {name}"):
            client.send(path, name)
            arrived = client.size(name)
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
        client = self._client()
        with self._denials(name):
            client.fetch(name, path, Transfer(self.timeout_s, most_bytes, stopped))

    def stream(self, name: str, stopped: threading.Event = NEVER) -> Iterator[bytes]:
        """Yield the bytes of an object in order, in chunks of any size, as they arrive. Only one chunk is in memory.

        Args:
            name: name of the object below the folder.
            stopped: event that the caller sets to cancel the transfer.

        Raises:
            InputError: the address cannot be opened, or access is denied. A second attempt would fail too.
            TransferCancelledError: `stopped` was set.
            TimeoutError: no byte has arrived for `timeout_s`.
            Exception: any other error of the store's client, unchanged. A second attempt may succeed.
        """
        client = self._client()
        with self._denials(name):
            yield from client.stream(name, Transfer(self.timeout_s, None, stopped))

    def fetch_ranges(self, name: str, ranges: Sequence[ByteRange], stopped: threading.Event = NEVER) -> list[bytes]:
        """Read parts of an object. Several requests are in flight at once, and neighbouring ranges share a request.

        All ranges are held in memory, so the caller limits their number.

        Args:
            name: name of the object below the folder.
            ranges: `(start, end)` of each part in bytes, `end` exclusive; in any order, none of them empty.
            stopped: event that the caller sets to cancel the transfer.

        Returns:
            The bytes of each range, in the order of `ranges`.

        Raises:
            RangesIgnoredError: the store answers with the whole object.
            InputError: the address cannot be opened, or access is denied. A second attempt would fail too.
            TransferCancelledError: `stopped` was set.
            TimeoutError: no byte has arrived for `timeout_s`.
            ValueError: too few bytes have arrived. A second attempt may succeed.
            Exception: any other error of the store's client, unchanged. A second attempt may succeed.
        """
        client, requests = self._client(), join_ranges(ranges)
        with self._denials(name):
            answers = client.fetch_ranges(name, requests, Transfer(self.timeout_s, None, stopped))
        for request, answer in zip(requests, answers, strict=True):
            if len(answer) != request.num_bytes:
                raise ValueError(
                    f"expected {request.num_bytes} bytes from position {request.start}, found {len(answer)}"
                )
        return cut_ranges(ranges, requests, answers)

    @contextmanager
    def _denials(self, name: str) -> Iterator[None]:
        """Raise InputError if access to an object is denied. Other errors of the client pass unchanged."""
        try:
            yield
        except Exception as error:
            refuse_denied(f"{self.name}/{name}", "reading", "read", error)
            raise

    def _client(self) -> Client:
        if os.getpid() not in self._clients:
            self._clients[os.getpid()] = _open_client(self.address, self.timeout_s, self.command)
        return self._clients[os.getpid()]


def _open_client(address: str, timeout_s: float, command: str | None) -> Client:
    """Open an address with obstore, or with fsspec if obstore cannot serve this address.

    obstore is faster, unless a web server is sent one request at a time (benchmarks/tables/stores.txt). A command that
    the user names takes the place of both.
    """
    if command is not None:
        return CommandClient(address, command)
    if obstore_client.can_open(address) and not is_configured(address):
        return ObstoreClient(address, timeout_s)
    return FsspecClient(address)
