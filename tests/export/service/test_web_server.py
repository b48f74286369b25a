"""The socket: one service per port, and connections whose clients accept no data are closed."""

import contextlib
import errno
import socket

import pytest
from serving import wait_until

from upfield.common.errors import InputError
from upfield.export.service.web_server import begin_to_listen, is_loopback, listen


def test_the_second_service_on_one_port_is_refused() -> None:
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", first.getsockname()[1]) as second:
        begin_to_listen(first, 30)
        with pytest.raises(InputError, match=r"port: port \d+ is taken"):
            begin_to_listen(second, 30)


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
