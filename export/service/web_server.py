"""The web server and its socket, and the limits that hold before the application sees a request."""

import errno
import socket
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig

BACKLOG = 2048
# A browser opens up to six for one page.
CONNECTIONS_PER_SCAN = 8


def listen(host: str, port: int) -> socket.socket:
    """Open and bind the socket, before anything that takes time.

    It does not listen yet: clients that connect before the model is loaded are refused at once, and so know that the
    service is not ready.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"host: {host} is not an address of this machine: {error}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _port_taken(port) from error
        if error.errno == errno.EACCES:
            raise InputError(f"port: you may not use port {port}. Choose a --port above 1023.") from error
        raise InputError(f"host: {host} is not an address of this machine: {error.strerror}.") from error
    return listener


def begin_to_listen(listener: socket.socket, idle_timeout_s: float) -> None:
    """Let clients connect.

    Args:
        listener: a bound socket.
        idle_timeout_s: how long a client may accept nothing of what was sent to it; then its connection ends.

    Raises:
        InputError: another process has begun to listen on the same port since both of them opened it.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Only the system can give up data that has been sent. Until then the connection stays open, and delays the
        # service's end.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * idle_timeout_s))
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _port_taken(listener.getsockname()[1]) from error
        raise


def _port_taken(port: int) -> InputError:
    return InputError(f"port: port {port} is taken. Choose another --port.")


def is_loopback(address: str) -> bool:
    """Return whether an IP address can be reached from this machine only."""
    return ip_address(address.partition("%")[0]).is_loopback


def uvicorn_config(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    """Return uvicorn's configuration: the limits on connections, and on requests before the application sees them."""
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        # Uvicorn's other parser sets no limit on a request's headers; this one accepts 64 KiB.
        http="h11",
        limit_concurrency=CONNECTIONS_PER_SCAN * (config.scans_at_once + config.max_queue) + 32,
        timeout_graceful_shutdown=int(config.timeout_s) + 1,
    )
