"""The bytes of a shard, which are read once and in order, and hashed as they pass."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator


class BrokenStreamError(Exception):
    """The source of a stream failed. The error is the cause of this one.

    Without this class, the failure of a connection would look like an error in the tar.
    """


class ShardStream:
    """Reads chunks of bytes as a file that only moves forward. It has the methods that `tarfile` and numpy call."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        """Remember the chunks; nothing is read yet.

        Args:
            chunks: consecutive parts of the shard, of any size.
        """
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self._chunk = memoryview(b"")
        self._start = 0
        self._position = 0
        self._checksum = 0

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes; fewer only at the end of the shard."""
        parts: list[memoryview] = []
        while count > 0 and (part := self._take(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def seek(self, position: int) -> None:
        """Move forward to `position`, or to the end of the shard if it is shorter.

        Raises:
            tarfile.ReadError: the stream has already passed the position, so the members of the tar overlap.
        """
        if position < self._position:
            raise tarfile.ReadError("members overlap")
        while self._position < position and self._take(position - self._position):
            pass

    def tell(self) -> int:
        """Return the number of bytes that have passed."""
        return self._position

    def take_checksum(self) -> int:
        """Return the CRC-32 of the bytes that have passed since the last call."""
        checksum, self._checksum = self._checksum, 0
        return checksum

    def finish(self) -> tuple[int, str]:
        """Read the rest, and return the size of the shard in bytes and its sha256 in hexadecimal digits."""
        while self._take(len(self._chunk) or 1):
            pass
        return self._position, self._hash.hexdigest()

    def _take(self, count: int) -> memoryview:
        """Return the next bytes of the current chunk, at most `count`, or none at the end of the shard."""
        used = self._position - self._start
        if used == len(self._chunk):
            self._chunk, self._start, used = self._next_chunk(), self._position, 0
        part = self._chunk[used : used + count]
        self._position += len(part)
        self._checksum = zlib.crc32(part, self._checksum)
        return part

    def _next_chunk(self) -> memoryview:
        try:
            chunk = next((chunk for chunk in self._chunks if chunk), b"")
        except Exception as error:
            raise BrokenStreamError from error
        self._hash.update(chunk)
        return memoryview(chunk)
