"""The response releases the resources of its request."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from upfield.export.configuration import ServeConfig
from upfield.export.service.counters import Counters
from upfield.export.service.middleware import RequestMiddleware
from upfield.export.service.scan_requests.scan_request import EnhancedFiles, ScanRequest
from upfield.export.service.scan_requests.scan_response import ScanResponse


def pass_through(app: Any, idle_timeout_s: float, send: Any) -> None:
    """Send one request through the middleware to an application."""
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    config = ServeConfig(Path("model.onnx"), idle_timeout_s=idle_timeout_s)
    asyncio.run(RequestMiddleware(app, config, Counters(1))(scope, receive, send))


@pytest.mark.parametrize("is_read", [True, False])
def test_files_are_closed_after_the_response_whether_the_client_accepts_it_or_not(
    tmp_path: Path, is_read: bool
) -> None:
    file = (tmp_path / "enhanced.nii.gz").open("w+b")
    sent: list[str] = []

    file.write(b"all of it")
    file.seek(0)
    request = ScanRequest(id="", log_id="", wants_before=False, deadline_s=0, folder=tmp_path)
    request.resources.enter_context(file)
    app = ScanResponse(request, EnhancedFiles(file))

    async def send(message: dict[str, Any]) -> None:
        assert not file.closed
        if message["type"] == "http.response.body" and not is_read:
            await asyncio.sleep(60)
        sent.append(message["type"])

    pass_through(app, 0.1, send)
    assert file.closed
    assert sent == ["http.response.start", "http.response.body", "http.response.body"][: 3 if is_read else 1]
