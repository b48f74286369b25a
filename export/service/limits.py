"""What the service refuses, and with which words: bodies, names, sizes; and how many scans it takes in."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from upfield.common.errors import VolumeError
from upfield.export.configuration import ServeConfig
from upfield.export.scans.outputs import SUFFIXES, as_nifti
from upfield.export.scans.scan import MAX_EXTENT_MM, SPACING_MM
from upfield.imaging.compressed_files import CHUNK_BYTES, DAMAGED, GZIP_MAGIC, is_compressed, open_content
from upfield.imaging.header import MGH_VERSION, expect_three_dimensions, read_header

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_NAME = 120
# A client that is cut off in the middle of its upload reads no answer: what is left of a moderate one is let in.
DRAIN_BYTES, DRAIN_S = 64 * 2**20, 5.0


class RefusedError(Exception):
    """What a client is told instead of an enhanced scan."""

    def __init__(self, status: int, sentence: str, retry_after_s: int | None = None) -> None:
        """State the HTTP status, what was expected, found and is to be done, and when to come again."""
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after_s = retry_after_s


class ClientGoneError(Exception):
    """The client has closed the connection: there is nobody to answer."""


def limited(receive: Receive, headers: Any, config: ServeConfig) -> Receive:
    """Pass on what a client sends, up to a limit, whatever length it has announced.

    Raises:
        RefusedError: 413, at once where the length is announced, else after the first byte too many; 408 where nothing
            comes for too long.
    """
    found = headers.get("content-length", "")
    announced = int(found) if found.isdecimal() else 0
    received, max_body_bytes = 0, config.max_body_bytes

    async def receive_limited() -> MutableMapping[str, Any]:
        nonlocal received
        if announced > max_body_bytes:
            # Who asks before sending has sent nothing yet, and would only begin to.
            if "expect" not in headers:
                await _drain(receive)
            raise _too_long(max_body_bytes, f"{announced}")
        try:
            async with asyncio.timeout(config.idle_timeout_s):
                message = await receive()
        except TimeoutError as error:
            raise RefusedError(
                408, f"expected the rest of the scan, found nothing for {config.idle_timeout_s:g} s; send it again"
            ) from error
        received += len(message.get("body", b""))
        if received > max_body_bytes:
            await _drain(receive)
            raise _too_long(max_body_bytes, "more")
        return message

    return receive_limited


async def _drain(receive: Receive) -> None:
    rest = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_S):
            while rest > 0 and (message := await receive())["type"] == "http.request" and message.get("more_body"):
                rest -= len(message["body"])
    except TimeoutError:
        pass


def _too_long(max_body_bytes: int, found: str) -> RefusedError:
    return RefusedError(413, f"expected at most {max_body_bytes} bytes, found {found}; compress the scan, or crop it")


def clean_name(name: str) -> str:
    """Give the last part of what a client calls its file, without what a header or a terminal could take amiss.

    It is empty where nothing is left.
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    shown = "".join(character for character in last if character.isprintable())
    return shown[-MAX_NAME:].strip()


def stored_suffix(name: str, start: bytes) -> str:
    """Give the ending that tells readers the format: by the client's name, without one by the content's first bytes.

    Args:
        name: of the client's file; empty where it gave none.
        start: of the upload.

    Raises:
        InputError: it is the name of another kind of file.
    """
    if not name:
        return ".nii.gz" if start.startswith(GZIP_MAGIC) else ".nii"
    as_nifti(Path(name))
    return next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))


def settle(path: Path, name: str) -> Path:
    """Rename an upload so that its ending tells the format, and give the new path.

    Args:
        path: the upload, under a name of ours.
        name: of the client's file; empty where it gave none.

    Raises:
        InputError: the client's name is that of another kind of file.
    """
    with path.open("rb") as file:
        suffix = stored_suffix(name, file.read(len(GZIP_MAGIC)))
    settled = path.with_name(f"scan{suffix}")
    path.rename(settled)
    if not name and suffix == ".nii.gz" and _starts_as_mgh(settled):
        settled = settled.rename(path.with_name("scan.mgz"))
    return settled


def _starts_as_mgh(path: Path) -> bool:
    try:
        with open_content(path) as file:
            return file.read(len(MGH_VERSION)) == MGH_VERSION
    except DAMAGED:
        return False


def check_scan(path: Path, where: str, config: ServeConfig) -> None:
    """Refuse what is too large, by the header before any voxel is read, and by counting what it inflates to.

    Args:
        path: the upload.
        where: what to call it in messages.
        config: the limits.

    Raises:
        VolumeError: the header is not that of one 3-D real volume.
        RefusedError: 413, too many voxels or bytes.
    """
    try:
        header = read_header(path)
        expect_three_dimensions(header, path)
    except VolumeError as error:
        raise VolumeError(where, error.problem) from error
    if prod(header.shape) > config.max_voxels:
        raise RefusedError(
            413, f"{where}: expected at most {config.max_voxels} voxels, found shape {header.shape}; crop it"
        )
    with np.errstate(all="ignore"):
        extent_mm = np.array(header.shape) * header.spacing_mm
    # A larger extent than any head's is refused by whoever prepares scans, in the words of the command line.
    if extent_mm.max() <= MAX_EXTENT_MM and prod(extent_mm / SPACING_MM) > config.max_voxels:
        size_mm = " x ".join(f"{mm:g}" for mm in extent_mm)
        raise RefusedError(
            413, f"{where}: expected at most {config.max_voxels} voxels at 1 mm, found {size_mm} mm; crop it"
        )
    if is_compressed(path):
        _check_content(path, where, config.max_decompressed_bytes)


def _check_content(path: Path, where: str, max_bytes: int) -> None:
    """Inflate piece by piece, keeping nothing, and stop at the limit."""
    count = 0
    try:
        with open_content(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                count += len(chunk)
                if count > max_bytes:
                    raise RefusedError(
                        413, f"{where}: expected at most {max_bytes} bytes without compression, found more"
                    )
    except DAMAGED:
        # Whoever reads it says what is wrong, in the words of the command line.
        return


# Two requests that are equally far are still two.
@dataclass(eq=False)
class RequestProgress:
    """How far a request is."""

    state: str = "receiving"
    """`receiving`, `waiting`, `reading`, `restoring` or `writing`."""
    slices_done: int = 0
    """Slices restored."""
    num_slices: int = 0
    """Slices of the scan, known once it has been read."""


class Queue:
    """The scans that are taken in: a few are worked on, a few wait, in the order of their arrival."""

    def __init__(self, at_once: int, max_waiting: int) -> None:
        """Set how many are worked on at once, and how many may wait besides."""
        self.waiting: list[RequestProgress] = []
        self.taken_in = 0
        self._limit = at_once + max_waiting
        self._at_once = at_once
        self._slots = asyncio.Semaphore(at_once)
        self._mean_s = 1.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a scan that is about to be received.

        Raises:
            RefusedError: 503, there is none.
        """
        if self.taken_in >= self._limit:
            after_s = self.retry_after_s()
            raise RefusedError(
                503,
                f"expected fewer than {self._limit} scans at once, found as many; come again in {after_s} s",
                after_s,
            )
        self.taken_in += 1
        try:
            yield
        finally:
            self.taken_in -= 1

    @asynccontextmanager
    async def turn(self, progress: RequestProgress) -> AsyncIterator[None]:
        """Wait until it is this scan's turn, and keep the others waiting until it is done."""
        progress.state = "waiting"
        self.waiting.append(progress)
        try:
            await self._slots.acquire()
        finally:
            self.waiting.remove(progress)
        started = time.monotonic()
        try:
            yield
        finally:
            self._slots.release()
            self._mean_s += 0.2 * (time.monotonic() - started - self._mean_s)

    def position(self, progress: RequestProgress) -> int:
        """Give the place of a scan among those that wait, counted from 1; 0 where it does not wait."""
        return next((place for place, other in enumerate(self.waiting, start=1) if other is progress), 0)

    def retry_after_s(self) -> int:
        """Estimate when there will be a place again, from how long scans took lately."""
        return max(math.ceil(self._mean_s * self.taken_in / self._at_once), 1)
