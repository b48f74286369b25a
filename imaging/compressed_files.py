"""Read files that may be compressed with gzip, and get the length and checksum of their content, if possible from
gzip's trailer.

Files are decompressed with ISA-L, which takes half the time of zlib.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from isal import igzip, isal_zlib

from upfield.common.errors import VolumeError
from upfield.imaging.formats.file_header import HEADER_BYTES
from upfield.imaging.formats.stated_length import stated_length

# BadGzipFile is an OSError. ISA-L has an error class of its own.
DAMAGED = (EOFError, zlib.error, cast(type[Exception], isal_zlib.error), OSError)
COMPRESSED = (".gz", ".mgz")
GZIP_MAGIC = b"\x1f\x8b"
TRAILER_BYTES = 8
CHUNK_BYTES = 1 << 20
# MGH files may hold tags after the voxels. If a file was cut off, its last four bytes can have any value, so one such
# file in 65536 is not noticed.
SLACK_BYTES = 1 << 16


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read `size` bytes, fewer if the source ends."""
        ...


@dataclass(frozen=True)
class Trace:
    """The length and checksum of a file's content, as far as they are known without reading the whole file."""

    num_bytes: int
    """Length of the content modulo 2**32, because gzip stores only 32 bits."""
    crc: int | None
    """CRC-32 of the content; None for uncompressed files, which do not store one."""


def is_compressed(path: Path) -> bool:
    """Return whether a file's name says that it is compressed with gzip."""
    return path.suffix.lower() in COMPRESSED


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, and decompress its content if its name says that it is compressed.

    Raises:
        BadGzipFile: the name says that the file is compressed, but it does not start like a gzip file.
    """
    with path.open("rb") as file:
        if not is_compressed(path):
            yield file
            return
        with _inflated(file) as content:
            yield content


def _inflated(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    # ISA-L itself would report a short text file as a gzip file that was cut off.
    if start := file.read(len(GZIP_MAGIC)).removeprefix(GZIP_MAGIC):
        raise igzip.BadGzipFile(f"Not a gzipped file ({start!r})")
    file.seek(0)
    return cast(BinaryIO, igzip.open(file))


def read_start(path: Path, num_bytes: int) -> tuple[bytes, Trace]:
    """Read the first `num_bytes` of a file's content and its trace, opening the file once.

    Raises:
        DAMAGED: the file is too short for gzip, damaged at its start, or cannot be read.
    """
    with path.open("rb") as file:
        if not is_compressed(path):
            return file.read(num_bytes), _trace(path, file)
        with _inflated(file) as content:
            start = content.read(num_bytes)
        return start, _trace(path, file)


def read_content(path: Path, num_bytes: int, expected: Trace | None = None) -> bytes:
    """Read the first `num_bytes` of a file's content, or all if it is shorter, and check the whole content's CRC.

    Args:
        path: a file, compressed or not.
        num_bytes: number of bytes to return.
        expected: trace of the file when its header was read.

    Raises:
        DAMAGED: the compressed file was cut off, or its CRC is wrong.
        VolumeError: the file's trace differs from the expected one.
    """
    with path.open("rb") as file:
        if is_compressed(path):
            with _inflated(file) as inflated:
                content = read_to_end(inflated, num_bytes)
        else:
            content = file.read(num_bytes)
        if expected is not None and _trace(path, file) != expected:
            raise changed(path)
    return content


def read_to_end(content: Readable, num_bytes: int) -> bytes:
    """Read `num_bytes` of an open gzip file's content, then read on to its end, which checks the CRC.

    A reader that stops at the last voxel never reaches the CRC, and most flipped bits only change voxels without any
    other error.

    Raises:
        DAMAGED: the file was cut off, or its CRC is wrong.
    """
    data = content.read(num_bytes)
    while content.read(CHUNK_BYTES):
        pass
    return data


def changed(path: Path) -> VolumeError:
    """Return the error for a file that changed after its header was read and before its voxels were read."""
    return VolumeError(str(path), "this file changed after its header was read. Run the same command again.")


def trace(path: Path) -> Trace:
    """Read a file's trace: its size, or the CRC32 and ISIZE fields at the end of a gzip file (RFC 1952).

    If ISIZE is not the length that the header in the content requires, the whole content is read. So files that are
    padded or have several members have the trace of their content too. A damaged file has the trace in its last bytes.

    Raises:
        DAMAGED: the file is too short for gzip, or cannot be read.
    """
    if not is_compressed(path):
        return Trace(path.stat().st_size % 2**32, None)
    with path.open("rb", buffering=0) as file:
        return _trace(path, cast(BinaryIO, file))


def _trace(path: Path, file: BinaryIO) -> Trace:
    if not is_compressed(path):
        return Trace(os.fstat(file.fileno()).st_size % 2**32, None)
    if file.seek(0, os.SEEK_END) < TRAILER_BYTES:
        raise EOFError("Compressed file ended before its trailer")
    file.seek(-TRAILER_BYTES, os.SEEK_END)
    trailer = file.read(TRAILER_BYTES)
    traced = Trace(int.from_bytes(trailer[4:], "little"), int.from_bytes(trailer[:4], "little"))
    try:
        with _inflated(file) as content:
            start = content.read(HEADER_BYTES)
            length = stated_length(start)
            if length is not None and (traced.num_bytes - length) % 2**32 <= SLACK_BYTES:
                return traced
            # The last 8 bytes do not belong to the whole content: the file has several members, of which the last may
            # be empty (SAM specification, 4.1), or is padded.
            return Trace(*_measure(content, start))
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno:
            raise
        return traced


def is_whole(path: Path, traced: Trace, num_bytes: int) -> bool:
    """Return whether a file holds at least `num_bytes` of content.

    Args:
        path: the file.
        traced: the file's trace. If the length in the trace is far from `num_bytes`, a compressed file is read to its
            end, because a complete gzip file with several members can have such a trace too.
        num_bytes: expected length of the content, from the header.
    """
    if not is_compressed(path):
        return path.stat().st_size >= num_bytes
    if (traced.num_bytes - num_bytes) % 2**32 <= SLACK_BYTES:
        return True
    try:
        with open_content(path) as file:
            return sum(map(len, chunks(file))) >= num_bytes
    except DAMAGED:
        return False


def measure_content(path: Path) -> tuple[int, int]:
    """Read the whole content of a file. Return its length modulo 2**32 and its CRC-32.

    Raises:
        DAMAGED: the file is damaged or cannot be read.
    """
    with open_content(path) as file:
        return _measure(file)


def _measure(file: BinaryIO, start: bytes = b"") -> tuple[int, int]:
    length, crc = len(start), zlib.crc32(start)
    for chunk in chunks(file):
        length, crc = length + len(chunk), zlib.crc32(chunk, crc)
    return length % 2**32, crc


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the rest of an open file in pieces of at most `CHUNK_BYTES`."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
