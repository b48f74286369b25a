"""Middleware for every request: adds an id, a log line and security headers, and turns errors into JSON responses."""

import asyncio
import re
import secrets
import time
import traceback

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upfield.common.progress import say
from upfield.export.configuration import ServeConfig
from upfield.export.service.access import OPEN_PATHS, route_path
from upfield.export.service.counters import Counters
from upfield.export.service.errors import ClientGoneError, RefusedError, error_response

# Clients request these paths every few seconds, which would fill the log.
UNLOGGED = ("/health", "/ready", "/metrics", "/progress", "/page")
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
CLIENT_GONE = 499  # nginx's status for a client that disconnected; used only in the log and the counters
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RequestMiddleware:
    """Outermost ASGI middleware: every request passes through it, and it turns every error into a response."""

    def __init__(self, app: ASGIApp, config: ServeConfig, counters: Counters) -> None:
        """Set the configuration, which limits the time for a part of a response, and the counters."""
        self._app = app
        self._idle_timeout_s = config.idle_timeout_s
        self._root_path = config.root_path
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, add the headers to its response, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if self._root_path:
            scope = {**scope, "root_path": self._root_path}
        if method == "HEAD":
            # The response to HEAD is that to GET, without its body.
            scope, send = {**scope, "method": "GET"}, without_body(send)
        await self._respond(method, scope, receive, send)

    async def _respond(self, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope.setdefault("state", {})["request_id"] = secrets.token_hex(8)
        started, status = time.monotonic(), 0

        async def send_completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    await send(message)
            except TimeoutError as error:
                raise ClientGoneError from error

        try:
            await self._app(scope, receive, send_completed)
        except ClientGoneError:
            pass
        except RefusedError as refusal:
            await error_response(refusal, request_id)(scope, receive, send_completed)
        except Exception:
            say(f"request {request_id}:\n{traceback.format_exc()}")
            if status:
                raise
            failure = RefusedError(500, "The service failed. Look for this request in the service's log.")
            await error_response(failure, request_id)(scope, receive, send_completed)
        finally:
            self._note(method, scope, status or CLIENT_GONE, time.monotonic() - started)

    def _note(self, method: str, scope: Scope, status: int, seconds: float) -> None:
        path = known_path(scope)
        method = method if method in METHODS else "other"
        self._counters.note_request(method, path, status, seconds)
        if not path.startswith(UNLOGGED) or status >= 400:
            # The query is not logged, because it can contain a file's name, which can contain a person's name.
            line = f"{method} {path} {status} {seconds:.2f} s {scope['state']['request_id']}"
            say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}")


def without_body(send: Send) -> Send:
    """Return a `send` function that leaves out the body of a response."""

    async def send_empty(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_empty


def known_path(scope: Scope) -> str:
    """Return the route of a request, or `other` if no route matches.

    Arbitrary paths from clients must not become counter labels or log lines.
    """
    route = scope.get("route")
    path = getattr(route, "path", None) or route_path(scope)
    return re.sub(r"/\{.*", "", path) if route is not None or path in OPEN_PATHS else "other"
