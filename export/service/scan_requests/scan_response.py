"""The response with an enhanced scan, alone or in a form with the interpolated scan."""

import os
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO
from urllib.parse import quote

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from upfield.export.service.scan_requests.scan_format import stem_of
from upfield.export.service.scan_requests.scan_request import EnhancedFiles, ScanRequest
from upfield.export.service.scan_requests.upload import CHUNK_BYTES, FORM

Part = bytes | BinaryIO


class ScanResponse(StreamingResponse):
    """Streams an enhanced scan, and releases the request once the scan has been sent or the client is gone."""

    def __init__(self, request: ScanRequest, files: EnhancedFiles) -> None:
        """Compose the headers and the parts of the body."""
        self._request = request
        parts, headers = _lay_out(request.name, files)
        if files.notes:
            headers["X-Upfield-Notes"] = quote("; ".join(files.notes), safe=" ;,().:/", errors="backslashreplace")
        headers["Content-Length"] = str(sum(map(_length, parts)))
        super().__init__(_stream(parts), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then release the request."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._request.release()


def _lay_out(name: str, files: EnhancedFiles) -> tuple[list[Part], dict[str, str]]:
    """Return the parts of the body and the headers that describe the body."""
    file_name = disposition(f"{stem_of(name)}_enhanced.nii.gz")
    if files.before is None:
        headers = {"Content-Type": "application/gzip", "Content-Disposition": f"attachment; {file_name}"}
        return [files.enhanced], headers
    boundary = secrets.token_hex(16)
    parts: list[Part] = [_part_head(boundary, "enhanced", file_name), files.enhanced, b"\r\n"]
    parts += [_part_head(boundary, "before", disposition("before.nii.gz")), files.before, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return parts, {"Content-Type": f"{FORM}; boundary={boundary}"}


def _part_head(boundary: str, field: str, file_name: str) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; {file_name}\r\n'
    return f"{head}Content-Type: application/gzip\r\n\r\n".encode()


def disposition(name: str) -> str:
    """Return a file name as parameters of Content-Disposition (RFC 6266): in ASCII for old clients, and in full."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='', errors='backslashreplace')}"


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else os.fstat(part.fileno()).st_size


async def _stream(parts: Sequence[Part]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        while chunk := part.read(CHUNK_BYTES):
            yield chunk
