"""`upfield serve`: enhancement over HTTP, on Ray Serve."""

import errno
import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from upfield.common.command import Command, execute
from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig

TOKEN_VARIABLE = "UPFIELD_TOKEN"
# Ray keeps sockets in its folder, for whose names Unix has little room.
SHORT_FOLDER = Path("/tmp")
# A browser opens up to six for one page.
CONNECTIONS_PER_SCAN = 8
BACKLOG = 2048


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, which let the requests at work be answered."""
    from upfield.common.progress import say

    expect_packages()
    token = read_token(config.token_file)
    card = describe(config)
    with listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        if token is None and not is_loopback(host):
            say(f"other machines can reach {host}, and no token is set; see token_file in upfield serve --help")
        try:
            run(config, card, listener, token, f"http://{f'[{host}]' if ':' in host else host}:{port}")
        except KeyboardInterrupt:
            say("ended")


def run(config: ServeConfig, card: Any, listener: socket.socket, token: str | None, address: str) -> None:
    """Start the replicas, and answer requests until a signal comes.

    Args:
        config: what was asked for.
        card: the model's metadata.
        listener: where requests come in.
        token: that they must carry, if any.
        address: what to tell people.
    """
    set_up_ray(config.address is None)

    import uvicorn

    from upfield.common.progress import say
    from upfield.export.service.counters import Counters
    from upfield.export.service.replicas import RayEngine
    from upfield.export.service.webapp import build_app
    from upfield.export.service.work_folder import work_folder

    assert config.model is not None
    counters = Counters(config.batch_size)
    with work_folder(Path(tempfile.gettempdir())) as folder, work_folder(SHORT_FOLDER) as ray_folder:
        engine = RayEngine(config, card, counters.note_batch, ray_folder)
        try:
            about = about_model(config, card, engine.provider)
            app = build_app(config, engine, about, counters, token, folder)
            begin_to_listen(listener, config.idle_timeout_s)
            say(f"{config.model.name} on {engine.provider}: {address}/ and, for programs, /docs; Ctrl-C ends it")
            # After a signal it stops listening, answers what it has taken in, and raises KeyboardInterrupt.
            uvicorn.Server(options(app, config)).run([listener])
        finally:
            engine.stop()


def options(app: Any, config: ServeConfig) -> Any:
    """Give uvicorn's configuration for the application: what holds before a request is one."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        # The other one sets no limit on a request's headers; this one takes 64 KiB.
        http="h11",
        limit_concurrency=CONNECTIONS_PER_SCAN * (config.scans_at_once + config.max_queue) + 32,
        timeout_graceful_shutdown=int(config.timeout_s) + 1,
    )


def set_up_ray(is_own: bool) -> None:
    """Set what Ray reads from the environment when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_own:
        # It listens on all of the machine's addresses: nobody else may give it work.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def expect_packages() -> None:
    """Raise InputError where what only the service needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client", "python_multipart") if not find_spec(name)]
    if missing:
        raise InputError(f"expected {', '.join(missing)}, found none; pip install 'upfield[serve]'")


def read_token(file: Path | None) -> str | None:
    """Give the token from its file, else from the environment, else None.

    Raises:
        InputError: there is no such file, or nothing that a header can carry in it.
    """
    if file is None and TOKEN_VARIABLE not in os.environ:
        return None
    where = TOKEN_VARIABLE if file is None else f"token_file {file}"
    try:
        token = os.environ[TOKEN_VARIABLE] if file is None else file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: expected a token in it, found none that can be read: {error}") from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{where}: expected one word in ASCII, found none; make one with openssl rand -hex 32")
    return token


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that requests come in by, before anything that takes time.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    try:
        (family, *_, place), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"host: expected an address of this machine, found {host}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        # Not listening yet: who connects before the model is loaded is refused at once, and knows that it is not ready.
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(port) from error
        if error.errno == errno.EACCES:
            raise InputError(f"port: expected one that you may use, found {port}; choose one above 1023") from error
        raise InputError(f"host: expected an address of this machine, found {host}: {error.strerror}") from error
    return listener


def begin_to_listen(listener: socket.socket, idle_timeout_s: float) -> None:
    """Let clients connect.

    Args:
        listener: a socket that is bound.
        idle_timeout_s: after which a connection ends whose client takes nothing of what was sent to it.

    Raises:
        InputError: another process has begun to listen on the same port since both of them opened it.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # What is sent already only the system can give up; until then a connection stays open, and holds up the end.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * idle_timeout_s))
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(listener.getsockname()[1]) from error
        raise


def _taken(port: int) -> InputError:
    return InputError(f"port: expected a free one, found {port} taken; choose another with --port")


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    from ipaddress import ip_address

    return ip_address(host.partition("%")[0]).is_loopback


def describe(config: ServeConfig) -> Any:
    """Read a model file's metadata, and make sure that it runs where it is asked to.

    Raises:
        InputError: it does not.
    """
    from upfield.export.modelfile.onnx_restorer import OnnxRestorer
    from upfield.imaging.normalisation import NORMALISATION

    assert config.model is not None
    # The machines of a cluster may have GPUs where this one has none.
    card = OnnxRestorer(config.model, "cpu" if config.address else config.device).card
    if card.normalisation != NORMALISATION:
        raise InputError(
            f"{config.model}: expected a model of normalisation {NORMALISATION!r}, found {card.normalisation!r}; use "
            "the version of upfield that exported it"
        )
    return card


def about_model(config: ServeConfig, card: Any, provider: str) -> dict[str, Any]:
    """Give what `/model` says."""
    from importlib.metadata import version

    from upfield.common.files import hash_file
    from upfield.export.scans.provenance import RESEARCH_USE

    assert config.model is not None
    return card.tree | {
        "file": config.model.name,
        "sha256": hash_file(config.model),
        "provider": provider,
        "batch_size": config.batch_size,
        "versions": {name: version(name) for name in ("upfield", "onnx", "ray", "fastapi")},
        "note": RESEARCH_USE,
    }


COMMAND = Command("serve", ServeConfig, serve, positional=("model",), required=("model",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
