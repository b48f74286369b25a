"""Content-Encoding: decodes a compressed request body while it arrives."""

import zlib
from collections.abc import Iterator, MutableMapping
from typing import Any

from starlette.datastructures import Headers

from upfield.export.service.errors import RefusedError
from upfield.export.service.scan_requests.body_limit import Receive, drain, too_long

PIECE_BYTES = 256 * 1024
CODINGS = ("gzip", "x-gzip", "deflate")
GZIP_BITS = zlib.MAX_WBITS | 16


def coding_of(headers: Headers) -> str | None:
    """Return the coding of a request body, in lower case; None if the body is sent as it is.

    Raises:
        RefusedError: the body has a coding that the service does not decode, or several (415).
    """
    listed = ",".join(headers.getlist("content-encoding")).lower().split(",")
    codings = [coding for word in listed if (coding := word.strip()) not in ("", "identity")]
    if len(codings) > 1 or (codings and codings[0] not in CODINGS):
        raise RefusedError(
            415,
            "The Content-Encoding of the request body is not supported. Send the scan without one, or with gzip or "
            "deflate.",
        )
    return codings[0] if codings else None


def decode_body(receive: Receive, coding: str, max_bytes: int) -> Receive:
    """Return a `receive` function that passes on the decoded body in pieces of at most `PIECE_BYTES`.

    The returned function raises RefusedError. The status is 413 if the decoded body is longer than `max_bytes`, and 400
    if the body is not in the coding, or is cut off.
    """
    inflater = Inflater(coding)
    pieces: Iterator[bytes] = iter(())
    is_last, num_decoded = False, 0

    async def refuse(refusal: RefusedError) -> RefusedError:
        if not is_last:
            await drain(receive)
        return refusal

    async def receive_decoded() -> MutableMapping[str, Any]:
        nonlocal pieces, is_last, num_decoded
        try:
            while (piece := next(pieces, None)) is None and not is_last:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                pieces, is_last = inflater.pieces(message.get("body", b"")), not message.get("more_body", False)
            if piece is None:
                inflater.expect_end()
        except (zlib.error, EOFError) as error:
            problem = f"The request body is not valid {coding} ({error}). Compress it again, or send it as it is."
            raise await refuse(RefusedError(400, problem)) from error
        num_decoded += len(piece or b"")
        if num_decoded > max_bytes:
            raise await refuse(too_long(max_bytes, num_decoded, "at least "))
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    return receive_decoded


class Inflater:
    """Decompresses a gzip or deflate body, of which only one piece is in memory."""

    def __init__(self, coding: str) -> None:
        """Start with an empty body."""
        self._is_gzip = coding != "deflate"
        self._member: Any = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the content of the next part of the body.

        Raises:
            zlib.error: the body is not in the coding.
        """
        may_hold_more = False
        while data or may_hold_more:
            if self._member is None or (self._member.eof and self._is_gzip):
                # Zeros after the last member are padding.
                data = data if self._member is None else data.lstrip(b"\0")
                if not data:
                    return
                self._member = zlib.decompressobj(self._window_bits(data))
            if self._member.eof:
                raise zlib.error("data after the end")
            piece = self._member.decompress(data, PIECE_BYTES)
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            may_hold_more = not self._member.eof and len(piece) == PIECE_BYTES
            if piece:
                yield piece

    def _window_bits(self, start: bytes) -> int:
        if self._is_gzip:
            return GZIP_BITS
        # RFC 9110 means the zlib format, but some clients leave out its header, which begins with a byte ...8.
        return zlib.MAX_WBITS if start[0] & 15 == 8 else -zlib.MAX_WBITS

    def expect_end(self) -> None:
        """Raise EOFError if the body was cut off."""
        if self._member is not None and not self._member.eof:
            raise EOFError("it is cut off")
