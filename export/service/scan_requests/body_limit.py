"""The limit on the length of a request body, and on the pauses while it arrives."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from upfield.export.configuration import ServeConfig
from upfield.export.service.errors import RefusedError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A client whose upload is cut off does not read the response, so the rest of a moderate upload is received first.
DRAIN_BYTES, DRAIN_S = 64 * 2**20, 5.0


def limit_body(receive: Receive, headers: Any, config: ServeConfig) -> Receive:
    """Return a `receive` function that raises an error if the body is too long or pauses for too long.

    The returned function raises RefusedError. The status is 413 if the announced length or the received bytes exceed
    the limit, and 408 if nothing arrives for too long.
    """
    length = headers.get("content-length", "")
    # Python refuses to convert thousands of digits.
    announced = int(length[:18]) if length.isdecimal() else 0
    num_received, max_body_bytes = 0, config.max_body_bytes

    async def receive_limited() -> MutableMapping[str, Any]:
        nonlocal num_received
        if announced > max_body_bytes:
            # A client that sends `Expect` waits for a response before it sends the body: there is nothing to discard.
            if "expect" not in headers:
                await drain(receive)
            raise too_long(max_body_bytes, announced)
        try:
            async with asyncio.timeout(config.idle_timeout_s):
                message = await receive()
        except TimeoutError as error:
            raise RefusedError(
                408, f"The upload paused for more than {config.idle_timeout_s:g} s. Send the scan again."
            ) from error
        num_received += len(message.get("body", b""))
        if num_received > max_body_bytes:
            await drain(receive)
            raise too_long(max_body_bytes, num_received, "at least ")
        return message

    return receive_limited


async def drain(receive: Receive) -> None:
    """Receive and discard the rest of a body, if it is of moderate length and arrives soon."""
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_S):
            while left > 0 and (message := await receive())["type"] == "http.request" and message.get("more_body"):
                left -= len(message["body"])
    except TimeoutError:
        pass


def too_long(max_body_bytes: int, num_bytes: int, bound: str = "") -> RefusedError:
    """Return the refusal of a body that has `num_bytes` bytes, or `bound` ("at least ") as many."""
    return RefusedError(
        413,
        f"The upload has {bound}{num_bytes} bytes, and the limit is {max_body_bytes}. Compress the scan, or crop it.",
    )
