"""The web application: routes, and a scan's way through them."""

import asyncio
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from upfield.common.cores import num_cores
from upfield.common.errors import InputError, RunError
from upfield.common.progress import say
from upfield.export.configuration import ServeConfig
from upfield.export.scans.outputs import as_nifti
from upfield.export.service.api_page import RESPONSES, SCAN_BODY, page_of
from upfield.export.service.counters import CONTENT_TYPE, Counters
from upfield.export.service.guard import Guard, words
from upfield.export.service.limits import (
    ClientGoneError,
    Queue,
    RefusedError,
    RequestProgress,
    clean_name,
    limited,
    settle,
)
from upfield.export.service.scan_job import Answer, Engine, enhance_upload

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript", "viewer.js": "text/javascript"}
CHUNK_BYTES = 256 * 1024
ID = re.compile(r"[0-9a-f]{32}")
FORM = "multipart/form-data"

T = TypeVar("T")


class Desk:
    """Where scans are handed in."""

    def __init__(self, config: ServeConfig, engine: Engine, folder: Path) -> None:
        """Set the limits, what restores slices, and the folder for what is being worked on."""
        self.config = config
        self.queue = Queue(config.scans_at_once, config.max_queue)
        self.progress: dict[str, RequestProgress] = {}
        self._engine = engine
        self._folder = folder
        self._executor = ThreadPoolExecutor(min(config.scans_at_once, num_cores()), "scan")

    async def answer(self, request: Request) -> tuple[Answer, str]:
        """Receive a scan, wait for its turn, and enhance it.

        Returns:
            What it has become, and what the client calls it.

        Raises:
            RefusedError: whatever is wrong with the scan or its size, no place, or no time left.
            ClientGoneError: the client is not there any more.
        """
        owner = request.query_params.get("id") or secrets.token_hex(16)
        if not ID.fullmatch(owner) or owner in self.progress:
            raise RefusedError(
                400, "id: expected 32 hexadecimal digits that no other request has, found something else"
            )
        held: ExitStack = request.state.held
        held.enter_context(self.queue.place())
        progress = self.progress[owner] = RequestProgress()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                answer, name = await self._within_time(request, owner, progress)
        except TimeoutError as error:
            limit = f"{self.config.timeout_s:g}"
            raise RefusedError(504, f"expected to be done within {limit} s, found it {progress.state}") from error
        finally:
            del self.progress[owner]
        for file in (answer.enhanced, answer.before):
            if file is not None:
                held.enter_context(file)
        return answer, name

    async def _within_time(self, request: Request, owner: str, progress: RequestProgress) -> tuple[Answer, str]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            upload, name = await receive_scan(request, folder, self.config)
            return await unless_gone(request, self._worked_on(upload, name, request, owner, progress)), name
        except InputError as error:
            raise RefusedError(422, without(str(error), folder)) from error
        except RunError as error:
            say(f"request {request.state.request_id}: {error}")
            raise RefusedError(
                503, "the service is in trouble, the scan may be sent again", self.queue.retry_after_s()
            ) from error
        finally:
            # Here, and not behind the scans in their threads: it holds at most the upload and two files.
            shutil.rmtree(folder, ignore_errors=True)

    async def _worked_on(
        self, upload: Path, name: str, request: Request, owner: str, progress: RequestProgress
    ) -> Answer:
        with_before = FORM in request.headers.get("accept", "")
        async with self.queue.turn(progress):
            return await enhance_upload(
                upload, name or "scan", with_before, self._engine, self.config, self._executor, owner, progress
            )

    def close(self) -> None:
        """Wait for what is still at work."""
        self._executor.shutdown()


def without(sentence: str, folder: Path) -> str:
    """Take a folder of this machine out of a sentence, where a library has put it in."""
    return re.sub(rf"{re.escape(str(folder))}/?", "", sentence)


async def receive_scan(request: Request, folder: Path, config: ServeConfig) -> tuple[Path, str]:
    """Write an upload to `folder` as it comes in, and give its path and what the client calls it, if anything.

    Raises:
        RefusedError: too long, too slow, or no file in the form.
        InputError: the name is that of another kind of file.
        ClientGoneError: the client went away.
    """
    limited_request = Request(request.scope, limited(request.receive, request.headers, config))
    upload = folder / "upload"
    name = clean_name(request.query_params.get("name", ""))
    try:
        if request.headers.get("content-type", "").lower().startswith(FORM):
            name = await _from_form(limited_request, upload) or name
        else:
            with upload.open("wb") as file:
                async for chunk in limited_request.stream():
                    file.write(chunk)
    except ClientDisconnect as error:
        raise ClientGoneError from error
    return settle(upload, name), name


async def _from_form(request: Request, upload: Path) -> str:
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            scan = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if scan is None:
                raise RefusedError(422, "expected a form with a file in it, found none")
            with upload.open("wb") as file:
                while chunk := await scan.read(CHUNK_BYTES):
                    file.write(chunk)
            return clean_name(scan.filename or "")
    except (MultiPartException, HTTPException) as error:
        raise RefusedError(400, f"expected a form with one file, found another: {error}") from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work` as long as the client does.

    Raises:
        ClientGoneError: it went away; what was at work has ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive()))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait([working, leaving])


async def _disconnected(message: Awaitable[Any]) -> None:
    # The whole body has been read: nothing else can come.
    await message


def build_app(
    config: ServeConfig, engine: Engine, card: dict[str, Any], counters: Counters, token: str | None, folder: Path
) -> FastAPI:
    """Put the application together.

    Args:
        config: the limits.
        engine: restores slices.
        card: what to say of the model.
        counters: of requests and batches.
        token: that requests must carry, if any.
        folder: for what is being worked on.
    """
    desk = Desk(config, engine, folder)
    counters.watch(desk.queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.close)

    app = FastAPI(
        title="upfield",
        summary="Enhance portable 64 mT brain MRI. For research, not for diagnosis.",
        version=card["versions"]["upfield"],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=RESPONSES,
    )
    app.add_middleware(Guard, config=config, token=token, counters=counters)
    _answer_in_words(app)
    _add_scan_routes(app, desk)
    _add_watch_routes(app, engine, card, counters)
    _add_pages(app)
    return app


def _answer_in_words(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = words(RefusedError(error.status_code, f"{error.detail}; see /docs"), request.state.request_id)
        answer.headers.update(error.headers or {})
        return answer

    # What is refused here is put into words by the guard.
    app.add_exception_handler(HTTPException, refused)


def _add_scan_routes(app: FastAPI, desk: Desk) -> None:
    @app.post("/enhance", openapi_extra=SCAN_BODY, response_class=Response, tags=["scans"])
    async def enhance(request: Request) -> Response:
        """Enhance a scan: any single-volume NIfTI in, the `.nii.gz` out that `upfield enhance` writes, byte for byte.

        With `Accept: multipart/form-data` the answer is a form of two files: `enhanced`, and `before`, the scan
        interpolated to the same voxels.
        """
        answer, name = await desk.answer(request)
        return file_response(answer, name)

    @app.get("/progress/{id}", tags=["scans"])
    async def progress(id: str) -> dict[str, Any]:  # noqa: A002 - the name in the address
        """Say how far the scan is that is being enhanced under this `id`."""
        found = desk.progress.get(id)
        if found is None:
            raise RefusedError(404, "expected the id of a scan that is being enhanced, found none such")
        return {
            "state": found.state,
            "position": desk.queue.position(found),
            "slices_done": found.slices_done,
            "num_slices": found.num_slices,
        }


def _add_watch_routes(app: FastAPI, engine: Engine, card: dict[str, Any], counters: Counters) -> None:
    @app.get("/health", tags=["watching"])
    async def health() -> dict[str, str]:
        """Say that the service is alive."""
        return {"status": "alive"}

    @app.get("/ready", tags=["watching"])
    async def ready() -> dict[str, str]:
        """Say whether a replica has loaded the model and answers; 503 otherwise."""
        if not await engine.is_ready():
            raise RefusedError(503, "expected a replica that answers, found none; one is being started", 5)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, tags=["watching"])
    async def metrics() -> Response:
        """Give counters in Prometheus's text format."""
        return Response(counters.exposition(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/model", tags=["watching"])
    async def model() -> JSONResponse:
        """Say what the model is: its metadata, its hash, and what it runs on."""
        return JSONResponse(card)


def _add_pages(app: FastAPI) -> None:
    async def index() -> HTMLResponse:
        return HTMLResponse((PAGE / "index.html").read_text(encoding="utf-8"))

    async def page_file(name: str) -> Response:
        if name not in PAGE_FILES:
            raise RefusedError(404, "expected a file of the page, found none such")
        return Response((PAGE / name).read_bytes(), media_type=PAGE_FILES[name])

    async def docs() -> HTMLResponse:
        return HTMLResponse(page_of(app.openapi()))

    for path, give in (("/", index), ("/page/{name}", page_file), ("/docs", docs)):
        app.add_api_route(path, give, include_in_schema=False)


def file_response(answer: Answer, name: str) -> Response:
    """Stream an enhanced scan, and what it was interpolated to where that was asked for."""
    stem = as_nifti(Path(name)).name.removesuffix(".nii.gz") if name else "scan"
    named = disposition(f"{stem}_enhanced.nii.gz")
    headers = {"X-Upfield-Notes": quote("; ".join(answer.notes), safe=" ;,().:/")} if answer.notes else {}
    if answer.before is None:
        parts: list[bytes | BinaryIO] = [answer.enhanced]
        headers |= {"Content-Type": "application/gzip", "Content-Disposition": f"attachment; {named}"}
    else:
        boundary = secrets.token_hex(16)
        before = disposition("before.nii.gz")
        parts = [_part_head(boundary, "enhanced", named), answer.enhanced, b"\r\n"]
        parts += [_part_head(boundary, "before", before), answer.before, b"\r\n"]
        parts.append(f"--{boundary}--\r\n".encode())
        headers |= {"Content-Type": f"{FORM}; boundary={boundary}"}
    headers["Content-Length"] = str(sum(map(_length, parts)))
    return StreamingResponse(_stream(parts), headers=headers)


def _part_head(boundary: str, field: str, file_name: str) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; {file_name}\r\n'
    return f"{head}Content-Type: application/gzip\r\n\r\n".encode()


def disposition(name: str) -> str:
    """Give a file's name as a header has it (RFC 6266): in ASCII for old clients, in full for the others."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _length(part: bytes | BinaryIO) -> int:
    return len(part) if isinstance(part, bytes) else os.fstat(part.fileno()).st_size


async def _stream(parts: Sequence[bytes | BinaryIO]) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, bytes):
            yield part
            continue
        while chunk := part.read(CHUNK_BYTES):
            yield chunk
