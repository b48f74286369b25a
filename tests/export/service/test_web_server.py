"""The socket: one service per port, and connections whose clients accept no data are closed."""

import contextlib
import errno
import socket
from pathlib import Path

import pytest
from serving import wait_until

from upfield.common.errors import InputError
from upfield.export.configuration import ServeConfig
from upfield.export.service import lifecycle
from upfield.export.service.web_server import begin_to_listen, is_loopback, listen


def test_the_second_service_on_one_port_is_refused_before_either_listens() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"port: port {port} is taken"):
            listen("127.0.0.1", port)
        begin_to_listen(first, 30)
        with pytest.raises(InputError, match=rf"port: port {port} is taken"):
            listen("127.0.0.1", port)
        # The connection stays in TIME_WAIT, which must not keep the next service from starting.
        with socket.create_connection(("127.0.0.1", port)), first.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)
    with listen("127.0.0.1", port) as second:
        begin_to_listen(second, 30)


def test_a_port_that_two_services_have_bound_is_refused_when_the_second_listens() -> None:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        begin_to_listen(first, 30)
        with pytest.raises(InputError, match=r"port: port \d+ is taken"):
            begin_to_listen(second, 30)


def test_a_port_in_use_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "read_model", lambda _: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="is taken"):
        lifecycle.run_service(ServeConfig(Path("model.onnx"), port=taken.getsockname()[1]))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
def test_the_system_closes_a_connection_whose_client_accepts_no_data() -> None:
    with listen("127.0.0.1", 0) as listener:
        begin_to_listen(listener, 0.2)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            accepted.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted.send(bytes(2**20))
            wait_until(lambda: accepted.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT)


def test_only_loopback_addresses_are_local() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.2")] == [True, True] + [
        False
    ] * 3
