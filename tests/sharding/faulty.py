"""A store on loopback that fails on demand: HTTP from a folder, or a proxy of an S3 server."""

import itertools
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = tuple[int, dict[str, str], bytes]
FAULTS = ("error", "stall", "truncation", "corruption")


def with_usual_names(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a request. Some clients write their names in small letters."""
    return {name.title(): value for name, value in headers}


def range_of(headers: dict[str, str]) -> tuple[int, int] | None:
    """Return the positions of the first requested byte and of the byte after the last one, if a range is requested."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
    return (int(asked[1]), int(asked[2]) + 1) if asked else None


def from_folder(root: Path) -> Callable[[str, dict[str, str]], Answer]:
    """Answer with the files of a folder, or with the range of bytes that was requested."""

    def answer(path: str, headers: dict[str, str]) -> Answer:
        file = root / path.lstrip("/")
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

    @contextmanager
    def _record(self, name: str, requested: tuple[int, int] | None) -> Iterator[str]:
        """Record a request while it is answered, and yield the fault that is planned for it, or an empty string."""
        with self._counting:
            self.asked[name] += 1
            if requested:
                self.ranges.append((name, *requested))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = next(self._faults[name], "")
        try:
            yield fault
        finally:
            with self._counting:
                self.at_once -= 1

    def _answer(self, path: str, asked: dict[str, str], fault: str) -> Answer:
        if fault == "error":
            return 500, {}, b"no"
        if self.ignores_ranges:
            asked.pop("Range", None)
        code, headers, body = self.answer(path, asked)
        if fault == "corruption":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return code, headers, body

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = "/".join(self.path.partition("?")[0].split("/")[-2:])
                asked = with_usual_names(self.headers.items())
                with server._record(name, range_of(asked)) as fault:
                    time.sleep(server.delay_s)
                    self.respond(name, asked, fault)

            def respond(self, name: str, asked: dict[str, str], fault: str) -> None:
                code, headers, body = server._answer(self.path, asked, fault)
                self.send_response(code)
                for key, value in headers.items():
                    if key.lower() in ("content-type", "content-range", "etag", "last-modified"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                half = fault in ("stall", "truncation", "gate")
                server.sent_bytes[name] += len(body) // 2 if half else len(body)
                self.wfile.write(body[: len(body) // 2] if half else body)
                self.wfile.flush()
                if fault in ("stall", "gate"):
                    server.stalled.set()
                    server.released.wait()
                if fault == "gate":
                    self.wfile.write(body[len(body) // 2 :])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        return Handler
