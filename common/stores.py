"""The store that a remote set lies in, read through fsspec."""

import asyncio
import os
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from upfield.common.addresses import format_address
from upfield.common.errors import InputError

POLL_S = 0.1
PACKAGES = {"s3": "'upfield[s3]'", "s3a": "'upfield[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp"}
PACKAGES |= {"https": "aiohttp", "az": "adlfs", "abfs": "adlfs"}
NEVER = threading.Event()


class TransferCancelledError(Exception):
    """A transfer ended because its caller asked it to."""


class Store:
    """A folder at an address. Each process opens a client of its own: fsspec's do not survive a fork."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """Take the address.

        Args:
            address: such as `s3://bucket/set`.
            timeout_s: a transfer that brings no byte for so long is given up.
        """
        self.address = address.rstrip("/")
        self.timeout_s = timeout_s
        # By process; what a fork inherits is kept, for its end would wait for threads that are not there.
        self._clients: dict[int, tuple[Any, str]] = {}

    def fetch(self, name: str, path: Path, most_bytes: int | None = None, stopped: threading.Event = NEVER) -> None:
        """Copy a file to a path of this machine.

        Args:
            name: below the address.
            path: a new file.
            most_bytes: give up when more than this comes.
            stopped: ends the transfer.

        Raises:
            InputError: no package for such addresses, or no address.
            TransferCancelledError: asked to.
            Exception: whatever the store's client makes of a failure; TimeoutError where nothing came.
        """
        from fsspec.callbacks import Callback

        client, root = self._client()
        if not client.async_impl:
            # Such a client has no transfer that could be broken off; it may have time limits of its own.
            client.get_file(f"{root}/{name}", str(path))
            return
        arrived = Callback()
        # In order and one part at a time: many shards arrive at once already.
        options = {"max_concurrency": 1} if "s3" in client.protocol else {}
        coroutine = client._get_file(f"{root}/{name}", str(path), callback=arrived, **options)
        transfer = asyncio.run_coroutine_threadsafe(coroutine, client.loop)
        try:
            self._watch(transfer, arrived, most_bytes, stopped)
        finally:
            transfer.cancel()
        transfer.result()

    def _watch(self, transfer: "Future[Any]", arrived: Any, most_bytes: int | None, stopped: threading.Event) -> None:
        """Return when a transfer has ended; raise where it stalls or has brought too much."""
        before, since_s = 0, time.monotonic()
        while not wait([transfer], POLL_S).done:
            if stopped.is_set():
                raise TransferCancelledError
            if most_bytes is not None and arrived.value > most_bytes:
                raise ValueError(f"more than {most_bytes} bytes")
            if arrived.value != before:
                before, since_s = arrived.value, time.monotonic()
            elif time.monotonic() - since_s > self.timeout_s:
                raise TimeoutError(f"no byte for {self.timeout_s:g} s, after {before}")

    def _client(self) -> tuple[Any, str]:
        if os.getpid() not in self._clients:
            self._clients[os.getpid()] = _open(self.address)
        return self._clients[os.getpid()]


def _open(address: str) -> tuple[Any, str]:
    import fsspec

    scheme = address.partition("://")[0]
    try:
        client, root = fsspec.core.url_to_fs(address, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        package = PACKAGES.get(scheme, "the package that it names")
        raise InputError(
            f"{format_address(address)}: expected a package for {scheme}://, found none ({error}); "
            f"pip install {package}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{format_address(address)}: expected an address such as s3://bucket/set, found none: {error}"
        ) from error
    return client, root.rstrip("/")


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    # Its default ends every transfer after five minutes, however well it goes.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None)}}
