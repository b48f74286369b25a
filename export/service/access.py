"""Access control: host names, origins and the token."""

import hmac
import os
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig
from upfield.export.service.errors import RefusedError

TOKEN_VARIABLE = "UPFIELD_TOKEN"
# Monitoring systems request these paths without a token. The page and the schema contain nothing confidential.
OPEN_PATHS = ("/", "/health", "/ready", "/docs", "/openapi.json")
OPEN_PREFIX = "/page/"
# Some monitoring systems speak HTTP/1.0 and send no Host. DNS rebinding needs a browser, which always sends one.
WATCHED_PATHS = ("/health", "/ready")
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
SAFE_METHODS = ("GET", "HEAD")


class AccessMiddleware:
    """Refuses requests to unknown host names, from another site's page, or without the token."""

    def __init__(self, app: ASGIApp, config: ServeConfig, token: str | None) -> None:
        """Set the accepted host names, and the token that requests must carry; with None, they need no token."""
        self._app = app
        self._hosts = accepted_hosts(config)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on to the application.

        Raises:
            RefusedError: the token is missing or wrong (401), another site's page sent the request (403), or the host
                name is unknown (421).
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_trusted = False

        async def serve_trusted(scope: Scope, receive: Receive, _: Send) -> None:
            nonlocal is_trusted
            is_trusted = True
            check_origin(scope)
            check_token(scope, self._token)
            await self._app(scope, receive, send)

        async def discard(_: Message) -> None:
            """Discard Starlette's response: status 400, plain text, no request id."""

        if is_health_check(scope) and "host" not in Headers(scope=scope):
            await serve_trusted(scope, receive, send)
            return
        # Without this check, another site could make its own host name point to this machine (DNS rebinding).
        await TrustedHostMiddleware(serve_trusted, self._hosts, www_redirect=False)(scope, receive, discard)
        if not is_trusted:
            raise RefusedError(
                421, "The host name of this request is not accepted. Add it to allowed_hosts of the service."
            )


def accepted_hosts(config: ServeConfig) -> list[str]:
    """Return the host names that requests may be sent to; `*` accepts every name."""
    if not config.allowed_hosts and not is_local(config.host):
        return ["*"]
    names = (config.host, *config.allowed_hosts)
    return [*LOCAL_NAMES, *(f"[{name}]" if ":" in name else name for name in names if name not in LOCAL_NAMES)]


def is_local(host: str) -> bool:
    """Return whether a configured host is a name or an address of this machine's loopback interface."""
    return host.lower() in (*LOCAL_NAMES, "::1") or host.startswith("127.")


def is_health_check(scope: Scope) -> bool:
    """Return whether a request only asks whether the service is alive or ready."""
    return scope["method"] in SAFE_METHODS and route_path(scope) in WATCHED_PATHS


def route_path(scope: Scope) -> str:
    """Return the path of a request below the path under which the service is reached (`root_path`)."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) or "/" if f"{path}/".startswith(f"{root}/") else path


def check_origin(scope: Scope) -> None:
    """Raise RefusedError if another site's page sent a request whose method can change state."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if scope["method"] in SAFE_METHODS or not origin:
        return
    # Another site's page can submit a form to this service on behalf of its visitor, without a CORS preflight.
    # Browsers send Sec-Fetch-Site, except over plain HTTP to another machine. In that case, compare Origin with Host.
    is_same_site = headers.get("sec-fetch-site") == "same-origin"
    if not is_same_site and origin.partition("://")[2] != headers.get("host"):
        raise RefusedError(403, "The request comes from another site's page. Use this service's own page.")


def check_token(scope: Scope, token: str | None) -> None:
    """Raise RefusedError if a request needs the token but does not carry it."""
    path = route_path(scope)
    if token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return
    scheme, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), token.encode()):
        raise RefusedError(401, "The service's token is missing or wrong. Send it as Authorization: Bearer TOKEN.")


def read_token(file: Path | None) -> str | None:
    """Read the token from `file`, or from the environment if `file` is None; return None if neither is set.

    Raises:
        InputError: the file cannot be read, or the token is not one word of printable ASCII characters.
    """
    if file is None and TOKEN_VARIABLE not in os.environ:
        return None
    where = TOKEN_VARIABLE if file is None else f"token_file {file}"
    try:
        token = os.environ[TOKEN_VARIABLE] if file is None else file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot read the token ({error}). The file must be readable ASCII text.") from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{where}: the token must be one word of printable ASCII characters. Create one with openssl rand -hex 32."
        )
    return token
