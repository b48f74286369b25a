"""The web server and its socket, and the limits that apply before the application sees a request."""

import errno
import socket
from ipaddress import ip_address
from typing import Any

import uvicorn
from fastapi import FastAPI

from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig

BACKLOG = 2048
# A browser opens up to six connections for one page.
CONNECTIONS_PER_SCAN = 8


def listen(host: str, port: int) -> socket.socket:
    """Open and bind a socket, so that a port in use is reported before the model is loaded.

    The socket does not listen yet. Clients that connect before the model is loaded are refused at once, and so learn
    that the service is not ready.

    Raises:
        InputError: the port is taken or not permitted, or the address does not belong to this machine.
    """
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _foreign_host(host, error) from error
    try:
        # Without SO_REUSEADDR, no other process can bind the port too. With it, the port can be bound although
        # connections of a service that has just ended are still closing.
        return _bind(family, address, reuse=False)
    except OSError as error:
        problem = error
    if problem.errno == errno.EADDRINUSE:
        try:
            return _bind(family, address, reuse=True)
        except OSError as error:
            problem = error
    if problem.errno == errno.EADDRINUSE:
        raise _port_taken(port) from problem
    if problem.errno == errno.EACCES:
        raise InputError(f"port: you have no permission to use port {port}. Choose a --port above 1023.") from problem
    raise _foreign_host(host, problem.strerror) from problem


def _bind(family: int, address: Any, *, reuse: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def begin_to_listen(listener: socket.socket, idle_timeout_s: float) -> None:
    """Start to accept connections.

    Args:
        listener: a bound socket.
        idle_timeout_s: close a connection whose client has not accepted any data for this many seconds.

    Raises:
        InputError: another process bound the same port too, and has started to listen on it.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Only the operating system can discard data that has been sent. Until it does, the connection stays open and
        # delays the shutdown of the service.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * idle_timeout_s))
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _port_taken(listener.getsockname()[1]) from error
        raise
    # Connections inherit this option, so that the next service can bind the port while they are closing.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _foreign_host(host: str, reason: object) -> InputError:
    return InputError(f"host: {host} is not an address of this machine ({reason}). Choose another --host.")


def _port_taken(port: int) -> InputError:
    return InputError(f"port: port {port} is taken. Choose another --port.")


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach the IP address `address`."""
    return ip_address(address.partition("%")[0]).is_loopback


def uvicorn_config(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    """Return uvicorn's configuration, with limits on connections and on request headers."""
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        # h11 accepts at most 64 KiB of request headers. Uvicorn's other parser has no limit.
        http="h11",
        limit_concurrency=CONNECTIONS_PER_SCAN * (config.scans_at_once + config.max_queue) + 32,
        timeout_graceful_shutdown=int(config.timeout_s) + 1,
    )
