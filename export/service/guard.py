"""What stands before every route: who may ask, what no answer may lack, and errors in words."""

import asyncio
import hmac
import re
import secrets
import time
import traceback
from collections.abc import MutableMapping
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from upfield.common.progress import say
from upfield.export.configuration import ServeConfig
from upfield.export.service.counters import Counters
from upfield.export.service.limits import ClientGoneError, RefusedError

# Whoever watches over the service asks these without a token; the page and the schema hold nothing of anybody's.
OPEN_PATHS = ("/", "/health", "/ready", "/docs", "/openapi.json")
OPEN_PREFIX = "/page/"
# Asked every few seconds: a line for each would bury the others.
UNTOLD = ("/health", "/ready", "/metrics", "/progress", "/page")
METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
CLIENT_GONE = 499  # nginx's number for it; nobody gets to see it
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


class Guard:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, config: ServeConfig, token: str | None, counters: Counters) -> None:
        """Set the limits, the token that requests must carry, if any, and what counts them."""
        self._app = app
        self._hosts = accepted_hosts(config)
        self._idle_timeout_s = config.idle_timeout_s
        self._token = token
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, if it may pass, and see to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = secrets.token_hex(8)
        # What the request holds until its answer has been taken.
        held = state["held"] = ExitStack()
        started, status = time.monotonic(), 0

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
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
            refuse_other_names(scope, self._hosts)
            refuse_strangers(scope, self._token)
            await self._app(scope, receive, send_guarded)
        except ClientGoneError:
            pass
        except RefusedError as refusal:
            await words(refusal, request_id)(scope, receive, send_guarded)
        except Exception:
            say(f"request {request_id}:\n{traceback.format_exc()}")
            if status:
                raise
            await words(RefusedError(500, "the service made a mistake; its log has more"), request_id)(
                scope, receive, send_guarded
            )
        finally:
            held.close()
            self._note(scope, status or CLIENT_GONE, time.monotonic() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = known_path(scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._counters.note_request(method, path, status, seconds)
        if not path.startswith(UNTOLD) or status >= 400:
            # Without the query: it can hold a file's name, and with it a person's.
            told = f"{method} {path} {status} {seconds:.2f} s {scope['state']['request_id']}"
            say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {told}")


def accepted_hosts(config: ServeConfig) -> frozenset[str] | None:
    """Give the names that requests may ask for the service by; None takes all."""
    own = config.host.lower() in LOCAL_NAMES or config.host.startswith("127.")
    if not own and not config.allowed_hosts:
        return None
    return frozenset(LOCAL_NAMES) | {name.lower() for name in (config.host, *config.allowed_hosts)}


def refuse_other_names(scope: Scope, hosts: frozenset[str] | None) -> None:
    """Raise RefusedError where a request asks for another name than the service's.

    A page elsewhere may have its own name lead to this machine, and pass for the service's (DNS rebinding).
    """
    if hosts is None:
        return
    name = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).strip("[]").lower()
    if name not in hosts:
        raise RefusedError(421, "expected this machine's own name in Host, found another; see allowed_hosts")


def refuse_strangers(scope: Scope, token: str | None) -> None:
    """Raise RefusedError where a request has not the token that it needs, or comes from another site's page."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    # A page elsewhere may send a form here without asking first, in the name of whoever looks at it. Browsers tell, but
    # not by plain HTTP to another machine, where only the names can be compared.
    own = headers.get("sec-fetch-site") == "same-origin"
    if (
        scope["method"] not in ("GET", "HEAD")
        and origin
        and not own
        and origin.partition("://")[2] != headers.get("host")
    ):
        raise RefusedError(403, "expected a request from this service's own page, found one from another site")
    path = scope["path"]
    if token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise RefusedError(401, "expected the service's token (Authorization: Bearer TOKEN), found none or another")


def known_path(scope: Scope) -> str:
    """Give the route of a request: what clients make up must not become names of counters, nor lines of a log."""
    route = scope.get("route")
    path = getattr(route, "path", None) or scope["path"]
    return re.sub(r"/\{.*", "", path) if route is not None or path in OPEN_PATHS else "other"


def words(refusal: RefusedError, request_id: str) -> JSONResponse:
    """Turn a refusal into an answer."""
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    if refusal.status == 408:
        # The rest of the scan may still come, and is not the next request.
        headers["Connection"] = "close"
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"error": refusal.sentence, "request": request_id}
    return JSONResponse(content, refusal.status, headers)
