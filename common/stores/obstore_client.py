"""A folder at an address, opened with obstore.

With several requests at once it is faster than fsspec's clients: 1.1 to 2.2 times for web addresses and whole shards,
and 3.1 to 3.6 times for parts of shards on S3. Over HTTP, a single request is slower (benchmarks/tables/stores.txt).
"""

import atexit
import io
import os
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from upfield.common.addresses import format_address
from upfield.common.errors import InputError
from upfield.common.stores.byte_ranges import RangeRequest
from upfield.common.stores.object_stores import SCHEMES, open_object_store, parse_address
from upfield.common.stores.store_errors import RangesIgnoredError
from upfield.common.stores.transfer import PART_BYTES, PARTS_AT_ONCE, POLL_S, Transfer, run_together

# An upload reports progress only after each part, and a slow connection needs minutes for one.
SEND_STALL_S = 900.0
# Requests for downloads are repeated by their callers, which count them. Others are repeated by obstore.
NUM_RETRIES = 4
REQUESTS_AT_ONCE = 32
# Larger chunks cost less processor time, but a download holds some of them in memory.
CHUNK_BYTES = 256 * 2**10
LIST_PAGE = 1000
# Codes of S3 for credentials that are no longer valid, or are not meant for this bucket.
DENIED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed")
# Parts of obstore's texts that say nothing to a person who does not know obstore.
NOISE = (r"^Generic \w+ error: ", r"^Object at location .*? not found: ", r"^The operation lacked .*? for path .*?: ")
NOISE += ("Error performing ", r" in [\d.]+[nµm]?s(?= - )", "Server returned non-2xx status code: ", "HTTP error: ")
SETTLE_S, COPY_ENDS_S = 0.05, 1.0
_copies: "WeakSet[threading.Thread]" = WeakSet()
# The process that has started obstore's threads. A forked process has none of them, and would wait for ever.
_owner: int | None = None

Result = TypeVar("Result")


def can_open(address: str) -> bool:
    """Return whether obstore knows this kind of address, is installed, and works in this process."""
    known = address.partition("://")[0] in SCHEMES and find_spec("obstore") is not None
    return known and _owner in (None, os.getpid())


class ObstoreClient:
    """A folder at an address of an object store or a web server."""

    takes_threads = True

    def __init__(self, address: str, timeout_s: float) -> None:
        """Open an address, without a slash at its end.

        Args:
            address: address of the folder.
            timeout_s: time in seconds after which a request fails if there is no answer.

        Raises:
            InputError: the address is not valid, or a package is missing.
        """
        _take_ownership()
        self.name = format_address(address)
        self.timeout_s = timeout_s
        self.root = parse_address(address).root
        self._reader = open_object_store(address, retries=0, read_timeout_s=timeout_s)
        is_signed = not getattr(self._reader, "config", {}).get("skip_signature")
        self._hint = "" if is_signed else "no credentials were found, so the request was not signed; "
        # With a time limit for reads, an upload would fail if a part needs longer, because no byte arrives meanwhile.
        self._writer = open_object_store(address, retries=NUM_RETRIES, read_timeout_s=None)

    def list_sizes(self) -> dict[str, int]:
        """Return a dictionary from the name of each object below the folder to its size in bytes."""
        transfer = Transfer(self.timeout_s)

        async def collect() -> dict[str, int]:
            sizes = {}
            async for page in self._writer.list(chunk_size=LIST_PAGE):
                transfer.add(len(page))
                sizes.update((meta["path"], meta["size"]) for meta in page)
            return sizes

        return self._run(collect(), transfer)

    def size(self, name: str) -> int:
        """Return the size of an object in bytes."""
        return self._run(self._writer.head_async(name))["size"]

    def read(self, name: str) -> bytes:
        """Read a small object."""

        async def read() -> bytes:
            return bytes(await (await self._writer.get_async(name)).bytes_async())

        return self._run(read())

    def write(self, name: str, data: bytes) -> None:
        """Write a small object."""
        self._run(self._writer.put_async(name, data))

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._run(self._writer.delete_async(name))

    def send(self, path: Path, name: str) -> None:
        """Send a file."""
        transfer = Transfer(SEND_STALL_S)

        class CountedFile(io.FileIO):
            def read(self, size: int | None = -1, /) -> Any:
                data = super().read(-1 if size is None else size)
                transfer.add(len(data or b""))
                return data

        with CountedFile(path) as file:
            put = self._writer.put_async(name, file, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
            self._run(put, transfer)

    def fetch(self, name: str, path: Path, transfer: Transfer) -> None:
        """Copy an object to a new file.

        A thread of its own copies, because waiting for each chunk with asyncio would cost a third more processor time.
        A cancelled copy ends with its next chunk, and the caller does not wait for that.
        """
        transfer.timeout_s = None  # The reader has its own limit.
        left = threading.Event()
        # It is opened here, because a cancelled copy must not open the file of the next try.
        file = path.open("wb", buffering=0)

        def copy() -> None:
            with file:
                for chunk in self._reader.get(name).stream(CHUNK_BYTES):
                    if left.is_set():
                        return
                    transfer.add(len(chunk))
                    _write_all(file, chunk)

        try:
            with self._errors():
                _run_aside(copy, transfer)
        finally:
            left.set()

    def stream(self, name: str, transfer: Transfer) -> Iterator[bytes]:
        """Yield the bytes of an object in order, as they arrive."""
        chunks = self._download(self._reader.get_async(name), transfer).stream(CHUNK_BYTES)
        while chunk := self._download(_next_chunk(chunks), transfer):
            yield bytes(chunk)

    def fetch_ranges(self, name: str, requests: Sequence[RangeRequest], transfer: Transfer) -> list[bytes]:
        """Return the answer to each request.

        Raises:
            RangesIgnoredError: the store answers with the whole object.
        """

        async def fetch(request: RangeRequest) -> bytes:
            return bytes(await self._reader.get_range_async(name, start=request.start, end=request.end))

        try:
            return self._download(run_together(fetch, requests, REQUESTS_AT_ONCE), transfer)
        except _WholeObjectError:
            raise RangesIgnoredError(f"{self.name}/{name}") from None

    def _download(self, call: Coroutine[Any, Any, Result], transfer: Transfer) -> Result:
        transfer.timeout_s = None  # The reader has its own limit.
        return self._run(call, transfer)

    def _run(self, call: Coroutine[Any, Any, Result], transfer: Transfer | None = None) -> Result:
        from fsspec.asyn import get_loop

        with self._errors():
            return (transfer or Transfer(self.timeout_s)).run(call, get_loop())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            if "TimedOut" in str(error):
                raise TimeoutError(f"no data for {self.timeout_s:g} s: {_summarize(str(error))}") from error
            if "Content-Length Header missing" in str(error):
                raise InputError(
                    f"{self.name}: the server does not state the length of its files. "
                    "Serve the set from a server that does, such as nginx."
                ) from error
            raise _translate(error, self._hint) from error
        except FileNotFoundError as error:
            if error.filename is None:
                raise FileNotFoundError(_summarize(str(error))) from error
            raise


def _run_aside(copy: Callable[[], None], transfer: Transfer) -> None:
    """Run a copy in a thread, and wait for its end or for the caller's wish to cancel it.

    Raises:
        TransferCancelledError: the caller has cancelled the transfer.
        Exception: any error of the copy.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            copy()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    _copies.add(thread)
    thread.start()
    transfer.wait(lambda: bool(wait([done], POLL_S).done))
    done.result()


def _take_ownership() -> None:
    """Remember that this process uses obstore, and make it exit without a crash.

    A thread of obstore may need the interpreter's lock for a moment longer than its transfer. If the interpreter ends
    meanwhile, the whole process aborts, even after all work is done.
    """
    global _owner
    if _owner is None:
        atexit.register(_settle)
        _owner = os.getpid()


def _settle() -> None:
    """Wait until cancelled copies have seen it. One that has stalled sleeps on, and does no harm."""
    end_s = time.monotonic() + COPY_ENDS_S
    for thread in list(_copies):
        thread.join(max(0.0, end_s - time.monotonic()))
    time.sleep(SETTLE_S)


class _WholeObjectError(OSError):
    """The store answered a request for a range with status 200, not 206."""


async def _next_chunk(chunks: Any) -> Any:
    return await anext(chunks, b"")


def _write_all(file: io.FileIO, chunk: Any) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _translate(error: Exception, hint: str) -> Exception:
    """Return the built-in error that says the same as an error of obstore.

    Args:
        error: error of obstore.
        hint: text that explains why access may be denied.
    """
    text = str(error)
    summary = _summarize(text)
    if "Received non-partial response" in text or "Range request not supported" in text:
        return _WholeObjectError(summary)
    status = re.search(r"status code: (\d+)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or (code and code[1] in DENIED):
        return PermissionError(hint + summary)
    if "/latest/api/token" in text or "computeMetadata" in text:
        return PermissionError(f"no credentials were found, and this machine has no role: {summary}")
    if status and status[1] == "404":
        return FileNotFoundError(summary)
    return OSError(summary)


def _summarize(text: str) -> str:
    """Return what a person must know of obstore's text: the request, the status, the store's message and the cause."""
    head, _, details = text.partition("\n\nDebug source:")
    message = re.search(r"<Message>(.*?)</Message>", head, re.DOTALL)
    head = re.sub(r": <.*", f": {message[1]}" if message else "", head, flags=re.DOTALL)
    head = re.sub("|".join(NOISE), "", head).replace(" - ", ": ", 1).strip(" :")
    causes = re.findall(r'(?:message|error): "([^"]+)"|(InvalidCertificate)\(\s*(\w+)', details)
    return " ".join([head, *(f"({' '.join(filter(None, cause))})" for cause in causes[-1:])])
