"""The handler of scan requests: takes each scan through all steps, within the time limit."""

import asyncio
import re
import secrets
import tempfile
from collections.abc import Awaitable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from upfield.common.cores import num_cores
from upfield.common.errors import InputError, RunError
from upfield.common.progress import say
from upfield.export.configuration import ServeConfig
from upfield.export.service.errors import ClientGoneError, RefusedError
from upfield.export.service.scan_requests.admission import AdmissionQueue
from upfield.export.service.scan_requests.enhancement import Engine, enhance_upload
from upfield.export.service.scan_requests.scan_request import EnhancedFiles, ScanRequest
from upfield.export.service.scan_requests.scan_response import ScanResponse
from upfield.export.service.scan_requests.upload import FORM, receive_upload

ID = re.compile(r"[0-9a-f]{32}")

T = TypeVar("T")


class ScanHandler:
    """Handles requests to enhance a scan. `requests` holds those in progress, by id."""

    def __init__(self, config: ServeConfig, engine: Engine, folder: Path) -> None:
        """Set the limits, the engine that restores slices, and the folder for uploads."""
        self.queue = AdmissionQueue(config.scans_at_once, config.max_queue)
        self.requests: dict[str, ScanRequest] = {}
        self._config, self._engine, self._folder = config, engine, folder
        self._executor = ThreadPoolExecutor(min(config.scans_at_once, num_cores()), "scan")

    async def handle(self, http_request: Request) -> ScanResponse:
        """Receive a scan, wait for its turn, and enhance it.

        Raises:
            RefusedError: the scan cannot be used, is too large, is not finished in time, or all places are taken.
            ClientGoneError: the client closed the connection.
        """
        id_ = http_request.query_params.get("id") or secrets.token_hex(16)
        if not ID.fullmatch(id_):
            raise RefusedError(400, "id: must be 32 lower-case hexadecimal digits. Generate them at random.")
        if id_ in self.requests:
            raise RefusedError(400, "id: another request has this id. Generate a new one at random.")
        with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as folder:
            request = ScanRequest(
                id=id_,
                log_id=http_request.state.request_id,
                wants_before=FORM in http_request.headers.get("accept", ""),
                deadline_s=asyncio.get_running_loop().time() + self._config.timeout_s,
                folder=Path(folder),
            )
            request.resources.enter_context(self.queue.place())
            self.requests[id_] = request
            try:
                return ScanResponse(request, await self._within_time(http_request, request))
            except BaseException:
                request.release()
                raise
            finally:
                del self.requests[id_]

    async def _within_time(self, http_request: Request, request: ScanRequest) -> EnhancedFiles:
        """Receive and enhance a scan within the time limit, and turn errors into refusals."""
        try:
            async with asyncio.timeout_at(request.deadline_s):
                await receive_upload(http_request, request, self._config)
                return await unless_gone(http_request, self._in_turn(request))
        except TimeoutError as error:
            limit, state = f"{self._config.timeout_s:g} s", request.progress.state
            raise RefusedError(
                504, f"The scan was not finished within {limit} (last step: {state}). Try again later."
            ) from error
        except InputError as error:
            raise RefusedError(422, without_folder(str(error), request.folder)) from error
        except RunError as error:
            say(f"request {request.log_id}: {error}")
            after_s = self.queue.retry_after_s()
            raise RefusedError(
                503, f"The service cannot restore scans at the moment. Send the scan again in {after_s} s.", after_s
            ) from error

    async def _in_turn(self, request: ScanRequest) -> EnhancedFiles:
        async with self.queue.turn(request.progress):
            files = await enhance_upload(request, self._engine, self._config, self._executor)
        for file in (files.enhanced, files.before):
            if file is not None:
                request.resources.enter_context(file)
        return files

    def close(self) -> None:
        """Wait for the threads that are still working."""
        self._executor.shutdown()


def without_folder(message: str, folder: Path) -> str:
    """Remove the path of a folder from an error message, because libraries may include it."""
    return re.sub(rf"{re.escape(str(folder))}/?", "", message)


async def unless_gone(http_request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, and cancel it if the client closes the connection.

    Raises:
        ClientGoneError: the client closed the connection, and `work` was cancelled and has ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(http_request.receive()))
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
    # The whole body has been read, so the next message reports that the client disconnected.
    await message
