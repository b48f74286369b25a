"""A folder at an address, opened with fsspec, which has a package for every kind of store."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from upfield.common.addresses import format_address
from upfield.common.errors import InputError
from upfield.common.stores.byte_ranges import RangeRequest
from upfield.common.stores.store_errors import RangesIgnoredError, bad_address
from upfield.common.stores.transfer import PART_BYTES, PARTS_AT_ONCE, Transfer, run_together

REQUESTS_AT_ONCE = 16
STREAM_BYTES = 2**20
PACKAGES: dict[str, str] = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
PACKAGES |= {"az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
# Schemes of one kind of store, for which fsspec's configuration may hold options.
FAMILIES = (("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss"), ("http", "https"))
# Variables of stores that only fsspec's clients know.
VARIABLES: dict[str, str] = dict.fromkeys(("az", "abfs", "abfss"), "AZURE_STORAGE_CONNECTION_STRING")


class FsspecClient:
    """A folder at an address. It works in one process only: fsspec's clients do not work after a fork."""

    def __init__(self, address: str) -> None:
        """Open an address, without a slash at its end.

        Raises:
            InputError: the package for this kind of address is not installed, or the address is not valid.
        """
        self.address = address
        self._client, self.root = open_with_fsspec(address)
        self._is_s3 = "s3" in self._client.protocol

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may transfer files at once. fsspec guarantees this for asynchronous clients only."""
        return self._client.async_impl

    def list_sizes(self) -> dict[str, int]:
        """Return a dictionary from the name of each object below the folder to its size in bytes."""
        self._client.invalidate_cache()
        objects = self._client.find(self.root, detail=True)
        # Otherwise fsspec would look up single objects in this listing later, when it may be outdated.
        self._client.invalidate_cache()
        return {path.removeprefix(f"{self.root}/"): info["size"] for path, info in objects.items()}

    def size(self, name: str) -> int:
        """Return the size of an object in bytes."""
        return self._client.info(f"{self.root}/{name}")["size"]

    def read(self, name: str) -> bytes:
        """Read a small object."""
        return self._client.cat_file(f"{self.root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a small object."""
        self._client.pipe_file(f"{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._client.rm_file(f"{self.root}/{name}")

    def send(self, path: Path, name: str) -> None:
        """Send a file."""
        parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE} if self._is_s3 else {}
        self._client.put_file(str(path), f"{self.root}/{name}", **parts)

    def fetch(self, name: str, path: Path, transfer: Transfer) -> None:
        """Copy an object to a new file."""
        from fsspec.callbacks import Callback

        class Counter(Callback):
            def relative_update(self, inc: int = 1) -> None:
                transfer.add(inc)

        if not self._client.async_impl:
            # The transfer of a synchronous client cannot be cancelled. The client may have its own time limits.
            self._client.get_file(f"{self.root}/{name}", str(path))
            return
        # One part at a time and in order is fast enough, because many shards are fetched at once.
        options = {"max_concurrency": 1} if self._is_s3 else {}
        copy = self._client._get_file(f"{self.root}/{name}", str(path), callback=Counter(), **options)
        transfer.run(copy, self._client.loop)

    def stream(self, name: str, transfer: Transfer) -> Iterator[bytes]:
        """Yield the bytes of an object in order, as they arrive."""
        path = f"{self.root}/{name}"
        if self._client.async_impl:
            with suppress(NotImplementedError):
                # The size is not needed, but some clients would ask for it.
                file = transfer.run(self._client.open_async(path, "rb", size=0), self._client.loop)
                yield from self._stream(file, transfer)
                return
        with self._client.open(path, "rb") as file:
            while chunk := file.read(STREAM_BYTES):
                transfer.refuse_stopped()
                yield chunk

    def _stream(self, file: Any, transfer: Transfer) -> Iterator[bytes]:
        try:
            while chunk := transfer.run(file.read(STREAM_BYTES), self._client.loop):
                transfer.add(len(chunk))
                yield chunk
        finally:
            transfer.run(file.close(), self._client.loop)

    def fetch_ranges(self, name: str, requests: Sequence[RangeRequest], transfer: Transfer) -> list[bytes]:
        """Return the answer to each request.

        Raises:
            RangesIgnoredError: the store answers with the whole object.
        """
        path = f"{self.root}/{name}"
        if self._client.async_impl:
            answers = transfer.run(self._fetch_ranges(path, requests, transfer), self._client.loop)
        else:
            answers = []
            for request in requests:
                transfer.refuse_stopped()
                answers.append(self._client.cat_file(path, start=request.start, end=request.end))
        if any(len(answer) > request.num_bytes for request, answer in zip(requests, answers, strict=True)):
            raise RangesIgnoredError(f"{format_address(self.address)}/{name}")
        return answers

    async def _fetch_ranges(self, path: str, requests: Sequence[RangeRequest], transfer: Transfer) -> list[bytes]:
        async def fetch(request: RangeRequest) -> bytes:
            answer = await self._client._cat_file(path, start=request.start, end=request.end)
            transfer.add(len(answer))
            return answer

        return await run_together(fetch, requests, REQUESTS_AT_ONCE)


def is_configured(address: str) -> bool:
    """Return whether the user has set options of fsspec for this kind of address, which other clients do not know.

    They are in variables such as `FSSPEC_S3_ENDPOINT_URL` or in files in `~/.config/fsspec`.
    """
    import fsspec.config

    scheme = address.partition("://")[0]
    family = next((family for family in FAMILIES if scheme in family), (scheme,))
    return VARIABLES.get(scheme, "") in os.environ or any(fsspec.config.conf.get(name) for name in family)


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
        raise bad_address(address, error) from error
    return client, root.rstrip("/")


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    # By default, aiohttp ends every transfer after five minutes, even one that makes progress.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None)}}
