"""Whatever a client sends, the service gives a documented answer, lives on, and leaves no file behind."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import LocalEngine, write_scan

from upfield.export.configuration import ServeConfig
from upfield.export.service.counters import Counters
from upfield.export.service.model_info import model_info
from upfield.export.service.webapp import build_app

# 499 is never sent: it stands for a client that has gone.
GONE = 499
COMMON = {401, 403, 404, 405, 421}


@dataclass
class Application:
    """The web application in this process, without a server."""

    app: FastAPI
    folder: Path
    scan: bytes

    def ask(self, method: str, path: str, query: bytes, headers: Any, body: list[bytes], is_cut: bool) -> Any:
        """Send one request, and return the status, the headers and the body of the response."""
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        messages.append({"type": "http.disconnect"} if is_cut else {"type": "http.request", "more_body": False})
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}
        scope |= {
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "client": ("1.2.3.4", 5),
            "server": ("h", 1),
        }
        asyncio.run(self.app(scope, receive, send))
        if not sent:
            return GONE, {}, b""
        found = {key.decode("latin-1"): value.decode("latin-1") for key, value in sent[0]["headers"]}
        return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def application(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    config = ServeConfig(
        tiny_model, max_body_bytes=50_000, max_decompressed_bytes=200_000, allowed_hosts=["testserver"]
    )
    counters = Counters(config.batch_size)
    engine = LocalEngine(tiny_model, config.batch_size, counters.note_batch)
    folder = tmp_path_factory.mktemp("work")
    app = build_app(config, engine, model_info(config, engine.restorer.card, "here"), counters, None, folder)
    scan = write_scan(tmp_path_factory.mktemp("scan") / "scan.nii", shape=(9, 9, 3)).read_bytes()
    return Application(app, folder, scan)


NAMES = st.one_of(
    st.sampled_from(["scan.nii", "scan.nii.gz", "a.mgz", "blob", "-", "x.dcm", "..", "a/b\\c.nii", "\u202e.nii", ""]),
    st.text(max_size=12),
)
CHARSETS = ("utf-8", "utf-16", "utf-7", "idna", "punycode", "unicode_escape", "undefined", "hex", "nonsense", "\xff")


@st.composite
def bodies(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A function that makes a body of a scan: whole, damaged, compressed, or not a scan at all."""
    damages = draw(st.lists(st.tuples(st.integers(0, 352), st.binary(min_size=1, max_size=4)), max_size=3))
    kept = draw(st.one_of(st.none(), st.integers(0, 1500)))
    other = draw(st.one_of(st.none(), st.none(), st.binary(max_size=600)))
    packed = draw(st.sampled_from([None, gzip.compress, zlib.compress]))

    def make(scan: bytes) -> bytes:
        body = bytearray(scan if other is None else other)
        for place, damage in damages:
            body[place : place + len(damage)] = damage
        whole = bytes(body) if packed is None else packed(bytes(body))
        return whole[:kept]

    return make


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """The Content-Type of a form, and what stands before and after the file in it."""
    name = draw(NAMES).encode("utf-8", "surrogatepass").replace(b"\r", b"").replace(b"\n", b"")
    quoted = draw(st.sampled_from([b'filename="%s"' % name, b"filename=%s" % name, b"filename*=UTF-8''%s" % name, b""]))
    head = b'--b\r\nContent-Disposition: form-data; name="scan"; ' + quoted + draw(st.sampled_from([b"\r\n\r\n", b""]))
    tail = draw(st.sampled_from([b"\r\n--b--\r\n", b"\r\n--b\r\n", b""]))
    charset = draw(st.sampled_from([None, *CHARSETS]))
    boundary = draw(st.sampled_from([b"; boundary=b", b"", b"; boundary=", b"; boundary=\xff"]))
    kind = b"multipart/form-data" + boundary + (f"; charset={charset}".encode("latin-1") if charset else b"")
    return kind, head, tail


@st.composite
def requests(draw: st.DrawFn) -> tuple[Any, ...]:
    """Method, path, query, headers, a function that makes the body's parts, and whether the client leaves."""
    paths = ("/enhance", "/enhance", "/enhance", "/", "/health", "/ready", "/metrics", "/model", "/docs", "/progress/x")
    path = draw(
        st.one_of(st.sampled_from([*paths, "/page/page.js", "/page/..", "/health/", "//"]), st.text(max_size=8))
    )
    method = draw(st.sampled_from(["POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "TRACE", "X"]))
    query = draw(
        st.one_of(st.just(b""), st.binary(max_size=20), st.sampled_from([b"name=a", b"id=1", b"name=%ff.nii"]))
    )
    headers = [(b"host", draw(st.sampled_from([b"localhost", b"localhost", b"elsewhere.example", b"", b"\xff"])))]
    for name, values in {
        b"content-encoding": [b"gzip", b"deflate", b"br", b"identity, gzip", b"\xff"],
        b"content-length": [b"5", b"99999999999", b"-1", b"x", b"9" * 5000],
        b"content-type": [b"text/plain", b"multipart/form-data", b"\xff"],
        b"accept": [b"multipart/form-data", b"*/*"],
        b"origin": [b"http://localhost", b"null", b"\xff"],
        b"authorization": [b"Bearer x", b"\xff"],
        b"expect": [b"100-continue"],
    }.items():
        if draw(st.integers(0, 3)) == 0:
            headers.append((name, draw(st.sampled_from(values))))
    body, form = draw(bodies()), draw(st.one_of(st.none(), forms()))
    size = draw(st.sampled_from([7, 500, 100_000]))

    def parts(scan: bytes) -> list[bytes]:
        whole = body(scan) if form is None else form[1] + body(scan) + form[2]
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    if form is not None:
        headers = [*(header for header in headers if header[0] != b"content-type"), (b"content-type", form[0])]
    return method, path, query, headers, parts, draw(st.integers(0, 9)) == 0


def form_with_charset(charset: bytes) -> tuple[Any, ...]:
    kind = b"multipart/form-data; boundary=b; charset=" + charset
    head = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="\xff.nii"\r\n\r\n'
    headers = [(b"host", b"localhost"), (b"content-type", kind)]
    return "POST", "/enhance", b"", headers, lambda scan: [head + scan + b"\r\n--b--\r\n"], False


@pytest.mark.generated
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example(request=form_with_charset(b"idna"))
@example(request=form_with_charset(b"undefined"))
@given(request=requests())
def test_every_request_gets_a_documented_answer(application: Application, request: tuple[Any, ...]) -> None:
    method, path, query, headers, parts, is_cut = request
    status, found, body = application.ask(method, path, query, headers, parts(application.scan), is_cut)
    assert list(application.folder.iterdir()) == []
    if status == GONE:
        assert is_cut
        return
    documented = application.app.openapi()["paths"].get(path, {}).get(method.lower().replace("head", "get"), {})
    assert status in {int(code) for code in documented.get("responses", {200: None})} | COMMON
    assert status != 500
    if method == "HEAD":
        assert body == b""
    elif status >= 400:
        assert found["content-type"] == "application/json"
        assert json.loads(body).keys() == {"error", "request"}


@pytest.mark.generated
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_the_schema_describes_the_service(application: Application, data: st.DataObject) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", application.app)
    results: list[Any] = list(schema.get_all_operations())
    operations = [result.ok() for result in results]
    case = data.draw(st.sampled_from(operations).flatmap(lambda operation: operation.as_strategy()))
    # The schema cannot say which bytes are a scan.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
    assert list(application.folder.iterdir()) == []
