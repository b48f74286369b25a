"""Receive a scan: write a request body, plain or a form, to a file, within the limits."""

from pathlib import Path, PurePosixPath

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from upfield.export.configuration import ServeConfig
from upfield.export.service.errors import ClientGoneError, RefusedError
from upfield.export.service.scan_requests.body_limit import drain, limit_body
from upfield.export.service.scan_requests.content_coding import coding_of, decode_body
from upfield.export.service.scan_requests.scan_format import START_BYTES, stored_suffix
from upfield.export.service.scan_requests.scan_request import ScanRequest
from upfield.imaging.contrast import parse_contrast

FORM = "multipart/form-data"
MAX_NAME = 120
CHUNK_BYTES = 256 * 1024


async def receive_upload(http_request: Request, request: ScanRequest, config: ServeConfig) -> None:
    """Write an upload to the request's folder as it arrives, and set the request's `name` and `path`.

    Raises:
        RefusedError: the body is too long, arrives too slowly, has an unknown or a wrong coding, or is a form without
            exactly one file.
        InputError: the file is not of a format that upfield reads.
        ClientGoneError: the client closed the connection.
    """
    receive = limit_body(http_request.receive, http_request.headers, config)
    try:
        coding = coding_of(http_request.headers)
    except RefusedError:
        await drain(http_request.receive)
        raise
    if coding is not None:
        receive = decode_body(receive, coding, config.max_body_bytes)
    limited = Request(http_request.scope, receive)
    upload = request.folder / "upload"
    request.name = clean_name(http_request.query_params.get("name", ""))
    contrast = http_request.query_params.get("contrast", "")
    try:
        if http_request.headers.get("content-type", "").lower().startswith(FORM):
            name, stated = await _receive_form(limited, upload)
            request.name, contrast = name or request.name, stated or contrast
        else:
            with upload.open("wb") as file:
                async for chunk in limited.stream():
                    file.write(chunk)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    request.contrast = _stated_contrast(contrast)
    with upload.open("rb") as file:
        suffix = stored_suffix(request.name, file.read(START_BYTES))
    request.path = upload.rename(upload.with_name(f"scan{suffix}"))


def _stated_contrast(text: str) -> str | None:
    try:
        return parse_contrast(text) if text else None
    except ValueError as error:
        raise RefusedError(422, f"contrast: {error}. Correct the field, or leave it out.") from error


async def _receive_form(limited: Request, upload: Path) -> tuple[str, str]:
    """Write a form's file to `upload`, and return the file's name and the contrast, which may both be empty."""
    try:
        async with limited.form(max_files=1, max_fields=8) as form:
            scan = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if scan is None:
                raise RefusedError(422, "The form contains no file. Add the scan as a file.")
            with upload.open("wb") as file:
                while chunk := await scan.read(CHUNK_BYTES):
                    file.write(chunk)
            contrast = form.get("contrast")
            return clean_name(scan.filename or ""), contrast if isinstance(contrast, str) else ""
    # The parser lets errors of unusual charsets pass.
    except (MultiPartException, HTTPException, ValueError, LookupError) as error:
        raise RefusedError(400, f"The request body is not a form with one file ({error}). See /docs.") from error


def clean_name(name: str) -> str:
    """Return the last part of a client's file name, without characters that could harm a header or a terminal.

    The result may be empty.
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    printable = "".join(character for character in last if character.isprintable())
    return printable[-MAX_NAME:].strip()
