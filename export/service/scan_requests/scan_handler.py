"""A scan's way through the service, step by step, within its time."""

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
    """Handles requests to enhance a scan, and knows how far each of them is."""

    def __init__(self, config: ServeConfig, engine: Engine, folder: Path) -> None:
        """Set the limits, what restores slices, and the folder for uploads."""
        self.queue = AdmissionQueue(config.scans_at_once, config.max_queue)
        self.requests: dict[str, ScanRequest] = {}
        self._config, self._engine, self._folder = config, engine, folder
        self._executor = ThreadPoolExecutor(min(config.scans_at_once, num_cores()), "scan")

    async def handle(self, http_request: Request) -> ScanResponse:
        """Receive a scan, wait for its turn, and enhance it.

        Raises:
            RefusedError: the scan cannot be used, is too large or too late, or there is no place for it.
            ClientGoneError: the client closed the connection.
        """
        id_ = http_request.query_params.get("id") or secrets.token_hex(16)
        if not ID.fullmatch(id_) or id_ in self.requests:
            raise RefusedError(400, "id: must be 32 hexadecimal digits that no other request uses.")
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
        """Take a request through its steps, and turn what goes wrong into refusals."""
        try:
            async with asyncio.timeout_at(request.deadline_s):
                await receive_upload(http_request, request, self._config)
                return await unless_gone(http_request, self._in_turn(request))
        except TimeoutError as error:
            limit = f"{self._config.timeout_s:g} s"
            raise RefusedError(
                504, f"The scan was not done within {limit}; it was still {request.progress.state}."
            ) from error
        except InputError as error:
            raise RefusedError(422, without_folder(str(error), request.folder)) from error
        except RunError as error:
            say(f"request {request.log_id}: {error}")
            after_s = self.queue.retry_after_s()
            raise RefusedError(
                503, f"The service is in trouble. Send the scan again in {after_s} s.", after_s
            ) from error

    async def _in_turn(self, request: ScanRequest) -> EnhancedFiles:
        async with self.queue.turn(request.progress):
            files = await enhance_upload(request, self._engine, self._config, self._executor)
        for file in (files.enhanced, files.before):
            if file is not None:
                request.resources.enter_context(file)
        return files

    def close(self) -> None:
        """Wait for threads that are still working."""
        self._executor.shutdown()


def without_folder(sentence: str, folder: Path) -> str:
    """Remove a folder of this machine from a sentence, in case a library has named it."""
    return re.sub(rf"{re.escape(str(folder))}/?", "", sentence)


async def unless_gone(http_request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work` as long as the client waits.

    Raises:
        ClientGoneError: the client closed the connection; `work` has been cancelled and has ended.
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
    # The whole body has been read, so that the next message is the client's leaving.
    await message
