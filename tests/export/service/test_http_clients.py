"""Ordinary HTTP clients are served: HEAD, compressed bodies, files without an ending, health checks, prefixes."""

import gzip
import http.server
import json
import re
import socket
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_chromium
from nibabel.freesurfer.mghformat import MGHImage
from serving import SHAPE, Response, Service, ask, running, send, send_form, write_scan

GET_PATHS = ("/", "/health", "/ready", "/metrics", "/model", "/docs", "/openapi.json", "/page/page.js", "/nowhere")


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tiny_model, tmp_path_factory.mktemp("work") / "w", max_body_bytes=100_000) as started:
        yield started


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A scan as an uncompressed NIfTI file."""
    return write_scan(tmp_path_factory.mktemp("scan") / "scan.nii").read_bytes()


@pytest.fixture(scope="module")
def enhanced(service: Service, scan: bytes) -> bytes:
    return send(service.port, scan).body


def post(port: int, body: bytes, coding: str, path: str = "/enhance?name=scan.nii") -> Response:
    return ask(port, path, "POST", body, {"Content-Encoding": coding})


def raw(port: int, request: bytes) -> bytes:
    """Send the bytes of a request, and return those of the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_has_the_headers_of_get_and_no_body(service: Service, path: str) -> None:
    head, get = ask(service.port, path, "HEAD"), ask(service.port, path)
    assert head.status == get.status
    assert head.body == b""
    changing = {"x-request-id", "date"} | ({"content-length"} if path == "/metrics" else set())
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in get.headers.items() if k not in changing
    }
    response = raw(service.port, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert response.endswith(b"\r\n\r\n")


def test_a_compressed_body_is_decoded(service: Service, scan: bytes, enhanced: bytes) -> None:
    packed = gzip.compress(scan)
    raw_deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    for body, coding in (
        (packed, "gzip"),
        (packed, "X-GZIP"),
        (packed, "identity, gzip"),
        (zlib.compress(scan), "deflate"),
        (raw_deflate.compress(scan) + raw_deflate.flush(), "deflate"),
        (gzip.compress(scan[:500]) + gzip.compress(scan[500:]) + bytes(64), "gzip"),
        (scan, "identity"),
        (scan, ""),
        (packed, "identity"),
    ):
        response = post(service.port, body, coding)
        assert response.status == 200, response.body
        assert response.body == enhanced
    # A client that takes the ending .gz for a coding.
    assert post(service.port, packed, "gzip", "/enhance?name=scan.nii.gz").body == enhanced


def test_an_unknown_coding_is_refused_with_the_known_ones(service: Service, scan: bytes) -> None:
    for coding in ("br", "zstd", "gzip, gzip", "nonsense"):
        response = post(service.port, scan, coding)
        assert response.status == 415
        assert response.headers["accept-encoding"] == "gzip, deflate"
        assert "gzip or deflate" in response.error


def test_a_body_that_is_not_in_its_coding_is_refused(service: Service, scan: bytes) -> None:
    packed = gzip.compress(scan)
    for body, coding in ((scan, "gzip"), (packed[:-20], "gzip"), (packed, "deflate"), (packed + b"more", "gzip")):
        response = post(service.port, body, coding)
        assert response.status == 400
        assert f"The request body is not valid {coding}" in response.error
    assert post(service.port, b"", "gzip").status == 422


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_may_not_exceed_the_limit_when_decoded(service: Service, coding: str) -> None:
    bomb = (gzip.compress if coding == "gzip" else zlib.compress)(bytes(50_000_000))
    assert len(bomb) < 100_000
    response = post(service.port, bomb, coding)
    assert response.status == 413
    assert re.match(r"The upload has at least \d{6} bytes, and the limit is 100000\.", response.error)
    assert list(service.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["blob", "-", "scan", "scan.nii", "scan.nii.gz", "scan.mgz", "scan.nii (1)", "a.b"])
def test_the_content_decides_the_format(service: Service, scan: bytes, enhanced: bytes, name: str) -> None:
    stem = re.sub(r"\.(nii|nii\.gz|mgz)$", "", name)
    plain = re.sub(r"[^\w. -]", "_", stem)
    for content in (scan, gzip.compress(scan), gzip.compress(b"") + gzip.compress(scan)):
        response = send_form(service.port, name, content)
        assert response.status == 200, response.body
        assert response.body == enhanced
        assert f'filename="{plain}_enhanced.nii.gz"' in response.headers["content-disposition"]


def test_mgh_content_is_recognised(service: Service, tmp_path: Path) -> None:
    image: Any = MGHImage
    image(np.random.default_rng(0).random(SHAPE, np.float32), np.diag((1.6, 1.6, 5, 1))).to_filename(tmp_path / "a.mgh")
    content = (tmp_path / "a.mgh").read_bytes()
    for name in ("blob", "", "a.nii"):
        for body in (content, gzip.compress(content)):
            assert send_form(service.port, name, body).status == 200


def test_content_of_no_known_format_is_refused_with_a_message(service: Service) -> None:
    for name in ("blob", "-", "scan.nii"):
        assert "not a readable NIfTI file" in send_form(service.port, name, b"words\n" * 100).error
    assert "the name must end in .nii" in send_form(service.port, "scan.png", b"\x89PNG").error
    assert "scan.dcm is a DICOM file" in send_form(service.port, "scan.dcm", bytes(128) + b"DICM").error


def test_health_checks_without_a_host_are_answered_and_nothing_else_is(service: Service) -> None:
    for path, status in (("/health", b"200"), ("/ready", b"200"), ("/", b"421"), ("/model", b"421"), ("/x", b"421")):
        for method in (b"GET", b"HEAD"):
            response = raw(service.port, method + f" {path} HTTP/1.0\r\n\r\n".encode())
            assert response.split()[1] == status
    assert raw(service.port, b"POST /enhance HTTP/1.0\r\nContent-Length: 0\r\n\r\n").split()[1] == b"421"
    assert raw(service.port, b"GET /health HTTP/1.0\r\nHost: elsewhere.example\r\n\r\n").split()[1] == b"421"
    assert raw(service.port, b"GET /health HTTP/1.0\r\nHost:\r\n\r\n").split()[1] == b"421"


@contextmanager
def prefix_proxy(port: int, prefix: str, *, strips: bool = True) -> Iterator[str]:
    """Pass requests below `prefix` on to the service, and return the address of the proxy."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith(f"{prefix}/"), self.path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.removeprefix(prefix) if strips else self.path
            kept = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
            address = f"http://127.0.0.1:{port}{path}"
            request = urllib.request.Request(address, body or None, kept, method=self.command)
            with urllib.request.urlopen(request) as answer:
                self.send_response(answer.status)
                for name in ("Content-Type", "Content-Disposition", "Content-Security-Policy", "X-Upfield-Notes"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.end_headers()
                self.wfile.write(answer.read())

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{prefix}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("strips", [True, False], ids=["prefix removed", "root_path"])
def test_the_page_works_below_a_path(
    tiny_model: Path, tmp_path: Path, scan: bytes, strips: bool, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "scan.nii").write_bytes(scan)
    with (
        running(tiny_model, tmp_path / "w", token=None, root_path="" if strips else "/mri/1") as service,
        prefix_proxy(service.port, "/mri/1", strips=strips) as address,
    ):
        with urllib.request.urlopen(f"{address}openapi.json") as response:
            schema = json.load(response)
        assert schema["servers"] == [{"url": "."}]
        assert ask(service.port, "/health").status == 200
        if (program := find_chromium()) is None:
            pytest.skip("there is no Chromium; install Debian's package chromium to test the page")
        browser = Browser(program)
        request.addfinalizer(browser.close)
        browser.open(address, 1280)
        browser.wait_for('document.getElementById("about").textContent.includes("model.onnx")')
        browser.choose_file("#file", tmp_path / "scan.nii")
        browser.wait_for("document.querySelectorAll('canvas').length === 6")
        assert browser.complaints == []
        browser.open(browser.ask("document.querySelector('footer a').href"), 1280)
        links = browser.ask("[...document.querySelectorAll('a, link[rel=stylesheet]')].map((link) => link.href)")
        assert links == [f"{address}{path}" for path in ("page/page.css", "openapi.json", "")]
        assert browser.complaints == []


def test_without_a_token_the_open_paths_are_served_below_a_root_path(tiny_model: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path / "w", token="a-token", root_path="/mri") as service:
        for prefix in ("", "/mri"):
            for path in ("/", "/health", "/page/page.js"):
                assert ask(service.port, f"{prefix}{path}").status == 200
            for path in ("/model", "/metrics"):
                assert ask(service.port, f"{prefix}{path}").status == 401
        assert raw(service.port, b"GET /mri/health HTTP/1.0\r\n\r\n").split()[1] == b"200"
        assert ask(service.port, "/mrihealth").status == 401
        assert ask(service.port, "/mri").headers["location"] == "mri/"
