"""A store on loopback that fails on demand: HTTP from a folder, or a proxy of an S3 server."""

import itertools
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = tuple[int, dict[str, str], bytes]
FAULTS = ("error", "stall", "truncation", "corruption")
PASSED_ON = ("Content-Type", "Content-Range", "Etag", "Last-Modified")
SLOW_BYTES, SLOW_S = 20_000, 0.1
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
REFUSALS: dict[str, "Answer"] = {"error": (500, {}, b"no"), "denied": (403, {}, DENIED), "expired": (400, {}, EXPIRED)}


def range_of(headers: dict[str, str]) -> tuple[int, int] | None:
    """Return the positions of the first requested byte and of the byte after the last one, if a range is requested."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
    return (int(asked[1]), int(asked[2]) + 1) if asked else None


def from_folder(root: Path) -> Callable[[str, dict[str, str]], Answer]:
    """Answer with the files of a folder, or with the range of bytes that was requested."""

    def answer(path: str, headers: dict[str, str]) -> Answer:
        file = root / urllib.parse.unquote(path.partition("?")[0]).lstrip("/")
        if not file.is_file():
            return 404, {}, b""
        data, asked = file.read_bytes(), range_of(headers)
        if asked is None:
            return 200, {}, data
        start, end = asked[0], min(asked[1], len(data))
        if start >= end:
            return 416, {}, b""
        return 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end]

    return answer


def from_server(url: str) -> Callable[[str, dict[str, str]], Answer]:
    """Forward requests to another server and return the answers of that server."""

    def answer(path: str, headers: dict[str, str]) -> Answer:
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers)) as got:
                return got.status, dict(got.headers), got.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    return answer


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    # With the default of 5, the kernel drops connections that are opened at once, and clients try again after a second.
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing, because clients close stalled connections."""


class FaultyServer:
    """Records the requests for each file, and returns the planned faults before it answers correctly."""

    def __init__(self, answer: Callable[[str, dict[str, str]], Answer]) -> None:
        self.answer = answer
        self.asked: Counter[str] = Counter()
        self.ranges: list[tuple[str, int, int]] = []
        self.delay_s = 0.0
        self.at_once = self.most_at_once = 0
        self._counting = threading.Lock()
        self.sent_bytes: Counter[str] = Counter()
        self.last_headers: dict[str, str] = {}
        self.ignores_ranges = False
        self.stalled = threading.Event()
        self.released = threading.Event()
        self._faults: defaultdict[str, Iterator[str]] = defaultdict(lambda: iter(()))
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._server.server_address[:2])

    def fail(self, name: str, faults: Iterable[str]) -> None:
        """Plan the faults of the next requests for files whose path ends in `name`."""
        self._faults[name] = iter(faults)

    def fail_always(self, name: str, fault: str) -> None:
        self.fail(name, itertools.repeat(fault))

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def plan(self, name: str, path: str, headers: dict[str, str]) -> tuple[str, Answer]:
        """Record a request. Return its planned fault, or "", and the answer, which this fault may have changed."""
        asked = {key.title(): value for key, value in headers.items()}
        with self._counting:
            self.asked[name] += 1
            self.last_headers = asked
            if requested := range_of(asked):
                self.ranges.append((name, *requested))
            fault = next(self._faults[name], "")
        time.sleep(self.delay_s)
        if self.ignores_ranges:
            asked = {key: value for key, value in asked.items() if key != "Range"}
        code, sent, body = self.answer(path, asked)
        if fault == "corruption":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        sent = {key: value for key, value in sent.items() if key.title() in PASSED_ON}
        return fault, REFUSALS.get(fault, (code, sent, body))

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count the requests that are answered at the same time."""
        with self._counting:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._counting:
                self.at_once -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with server.in_flight():
                    name = "/".join(self.path.partition("?")[0].split("/")[-2:])
                    fault, (code, headers, body) = server.plan(name, self.path, dict(self.headers))
                    self.send_response(code)
                    lengths = {} if fault == "unsized" else {"Content-Length": str(len(body))}
                    for key, value in (headers | lengths).items():
                        self.send_header(key, value)
                    self.end_headers()
                    if fault == "slow":
                        self.send_slowly(body)
                        return
                    first = len(body) // 2 if fault in ("stall", "truncation", "gate") else len(body)
                    server.sent_bytes[name] += first
                    self.wfile.write(body[:first])
                    self.wfile.flush()
                    if fault in ("stall", "gate"):
                        server.stalled.set()
                        server.released.wait()
                    if fault == "gate":
                        self.wfile.write(body[first:])

            def send_slowly(self, body: bytes) -> None:
                for start in range(0, len(body), SLOW_BYTES):
                    self.wfile.write(body[start : start + SLOW_BYTES])
                    self.wfile.flush()
                    server.released.wait(SLOW_S)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        return Handler
