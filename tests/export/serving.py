"""Shared by the service's tests: scans, a client, and the service in this process, without Ray."""

import asyncio
import gzip
import http.client
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import uvicorn

from upfield.export.configuration import ServeConfig
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.service.counters import Counters
from upfield.export.service.model_info import model_info
from upfield.export.service.replicas.strips import Strip, StripBatcher
from upfield.export.service.web_server import listen, uvicorn_config
from upfield.export.service.webapp import build_app

TIMEOUT_S = 60
SHAPE, SPACING_MM = (12, 14, 6), (1.6, 1.6, 5.0)


@dataclass
class Response:
    """A complete HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The message of a refusal. The test fails if the response is not a refusal."""
        tree = json.loads(self.body)
        assert set(tree) == {"error", "request"}
        assert tree["request"] == self.headers["x-request-id"]
        return tree["error"]


def ask(port: int, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None) -> Response:
    """Send one request and read the whole response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Response(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def send(port: int, scan: Path | bytes, path: str = "/enhance", headers: dict[str, str] | None = None) -> Response:
    """Send a scan as the request body; the name of a file goes into the query."""
    if isinstance(scan, Path):
        path, scan = f"{path}?name={quote(scan.name)}", scan.read_bytes()
    return ask(port, path, "POST", scan, headers)


def send_form(port: int, name: str, content: bytes, headers: dict[str, str] | None = None) -> Response:
    """Send a scan as the file of a form."""
    boundary = secrets.token_hex(8)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="scan"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return ask(port, "/enhance", "POST", body, form | (headers or {}))


def write_scan(path: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE, voxels: np.ndarray | None = None) -> Path:
    """Write a small oblique scan of noise, stored L-P-S."""
    affine = np.diag((-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0))
    affine[:3, 3] = (10, 20, -30)
    affine[0, 1] = 0.1
    if voxels is None:
        voxels = np.random.default_rng(seed).random(shape, np.float32)
    nib.Nifti1Image(voxels, affine).to_filename(path)
    return path


class LocalEngine:
    """Restores strips in this process, in batches as a replica does."""

    def __init__(self, model: Path, batch_size: int, note: Any) -> None:
        self.restorer = OnnxRestorer(model, "cpu", 1)
        self.card = self.restorer.card
        self.batch_size = batch_size
        self.gate = threading.Event()
        """`restore` waits until the gate is set."""
        self.gate.set()
        self.ready = True
        self.error: Exception | None = None
        """Error that `restore` raises, if set."""
        self._note = note
        self._batcher = StripBatcher(self.restorer, batch_size)

    async def restore(self, owner: str, low: np.ndarray) -> np.ndarray:
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        restored = await self._batcher.restore(Strip(owner, low))
        for batch in restored.batches:
            self._note(batch)
        return restored.high

    async def is_ready(self) -> bool:
        return self.ready


@dataclass
class Service:
    """A running service."""

    port: int
    engine: LocalEngine
    folder: Path


@contextmanager
def running(model: Path, folder: Path, token: str | None = None, **limits: Any) -> Iterator[Service]:
    """Run the web application on a free port, in a thread of this process."""
    config = ServeConfig(model=model, **limits)
    counters = Counters(config.batch_size)
    engine = LocalEngine(model, config.batch_size, counters.note_batch)
    folder.mkdir(exist_ok=True)
    app = build_app(config, engine, model_info(config, engine.restorer.card, "here"), counters, token, folder)
    server = uvicorn.Server(uvicorn_config(app, config))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Service(listener.getsockname()[1], engine, folder)
        finally:
            engine.gate.set()
            server.should_exit = True
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


def wait_until(holds: Any) -> None:
    """Wait until a function returns a true value."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)


def metric(port: int, name: str, **headers: str) -> float:
    """Return the value of one counter, or 0 if it does not exist yet."""
    lines = ask(port, "/metrics", headers=headers).body.decode().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def gzip_bomb(size: int) -> bytes:
    """Return a compressed small scan of noise, followed by `size` zeros, which compress about a thousandfold."""
    image = nib.Nifti1Image(np.random.default_rng(0).random(SHAPE, np.float32), np.diag((*SPACING_MM, 1)))
    return gzip.compress(image.to_bytes() + bytes(size))
