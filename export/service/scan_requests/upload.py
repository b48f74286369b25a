"""Receive a scan: write a request body, plain or a form, to a file, within the limits."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from upfield.export.configuration import ServeConfig
from upfield.export.scans.outputs import SUFFIXES, as_nifti
from upfield.export.service.errors import ClientGoneError, RefusedError
from upfield.export.service.scan_requests.scan_request import ScanRequest
from upfield.imaging.compressed_files import GZIP_MAGIC

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

FORM = "multipart/form-data"
MAX_NAME = 120
CHUNK_BYTES = 256 * 1024
# A client whose upload is cut off does not read the response, so the rest of a moderate upload is received first.
DRAIN_BYTES, DRAIN_S = 64 * 2**20, 5.0


async def receive_upload(http_request: Request, request: ScanRequest, config: ServeConfig) -> None:
    """Write an upload to the request's folder as it arrives, and set the request's `name` and `path`.

    Raises:
        RefusedError: the body is too long, arrives too slowly, or is a form without exactly one file.
        InputError: the file name has a suffix that upfield does not read.
        ClientGoneError: the client closed the connection.
    """
    limited = Request(http_request.scope, limit_body(http_request.receive, http_request.headers, config))
    upload = request.folder / "upload"
    request.name = clean_name(http_request.query_params.get("name", ""))
    try:
        if http_request.headers.get("content-type", "").lower().startswith(FORM):
            request.name = await _receive_form(limited, upload) or request.name
        else:
            with upload.open("wb") as file:
                async for chunk in limited.stream():
                    file.write(chunk)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    with upload.open("rb") as file:
        suffix = stored_suffix(request.name, file.read(len(GZIP_MAGIC)))
    request.path = upload.rename(upload.with_name(f"scan{suffix}"))


async def _receive_form(limited: Request, upload: Path) -> str:
    """Write a form's file to `upload`, and return the file's name."""
    try:
        async with limited.form(max_files=1, max_fields=8) as form:
            scan = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if scan is None:
                raise RefusedError(422, "The form contains no file. Add the scan as a file.")
            with upload.open("wb") as file:
                while chunk := await scan.read(CHUNK_BYTES):
                    file.write(chunk)
            return clean_name(scan.filename or "")
    except (MultiPartException, HTTPException) as error:
        raise RefusedError(400, f"The request body is not a form with one file ({error}). See /docs.") from error


def limit_body(receive: Receive, headers: Any, config: ServeConfig) -> Receive:
    """Return a `receive` function that raises an error if the body is too long or pauses for too long.

    The returned function raises RefusedError. The status is 413 if the announced length or the received bytes exceed
    the limit, and 408 if nothing arrives for too long.
    """
    length = headers.get("content-length", "")
    announced = int(length) if length.isdecimal() else 0
    num_received, max_body_bytes = 0, config.max_body_bytes

    async def receive_limited() -> MutableMapping[str, Any]:
        nonlocal num_received
        if announced > max_body_bytes:
            # A client that sends `Expect` waits for a response before it sends the body: there is nothing to discard.
            if "expect" not in headers:
                await _drain(receive)
            raise _too_long(max_body_bytes, announced)
        try:
            async with asyncio.timeout(config.idle_timeout_s):
                message = await receive()
        except TimeoutError as error:
            raise RefusedError(
                408, f"The upload paused for more than {config.idle_timeout_s:g} s. Send the scan again."
            ) from error
        num_received += len(message.get("body", b""))
        if num_received > max_body_bytes:
            await _drain(receive)
            raise _too_long(max_body_bytes, num_received, "at least ")
        return message

    return receive_limited


async def _drain(receive: Receive) -> None:
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_S):
            while left > 0 and (message := await receive())["type"] == "http.request" and message.get("more_body"):
                left -= len(message["body"])
    except TimeoutError:
        pass


def _too_long(max_body_bytes: int, num_bytes: int, bound: str = "") -> RefusedError:
    return RefusedError(
        413,
        f"The upload has {bound}{num_bytes} bytes, and the limit is {max_body_bytes}. Compress the scan, or crop it.",
    )


def clean_name(name: str) -> str:
    """Return the last part of a client's file name, without characters that could harm a header or a terminal.

    The result may be empty.
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    printable = "".join(character for character in last if character.isprintable())
    return printable[-MAX_NAME:].strip()


def stored_suffix(name: str, start: bytes) -> str:
    """Return the suffix for the stored upload, from which readers recognise the format.

    Args:
        name: the client's name for the file; empty if the client sent none.
        start: first bytes of the upload, which determine the suffix if there is no name.

    Raises:
        InputError: the file name has a suffix that upfield does not read.
    """
    if not name:
        # Readers accept both compressed NIfTI and compressed MGH under this suffix.
        return ".mgz" if start.startswith(GZIP_MAGIC) else ".nii"
    as_nifti(Path(name))
    return next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
