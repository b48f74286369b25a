"""Run a client's transfer, and end it if it stalls, exceeds its limit or is cancelled."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import wait
from typing import TypeVar

POLL_S = 0.1
NEVER = threading.Event()

Item = TypeVar("Item")
Result = TypeVar("Result")


class TransferCancelledError(Exception):
    """The caller cancelled a transfer."""


class Transfer:
    """The limits of a transfer, and the number of bytes that have arrived."""

    def __init__(self, timeout_s: float, most_bytes: int | None, stopped: threading.Event) -> None:
        """Store the limits.

        Args:
            timeout_s: time in seconds after which the transfer fails if no byte arrives.
            most_bytes: the transfer fails if more bytes arrive.
            stopped: event that the caller sets to cancel the transfer.
        """
        self.timeout_s = timeout_s
        self.most_bytes = most_bytes
        self.stopped = stopped
        self.num_bytes = 0
        """Number of bytes that have arrived. The client counts them."""

    def run(self, coroutine: Coroutine[object, object, Result], loop: asyncio.AbstractEventLoop) -> Result:
        """Run a coroutine in the thread of an event loop, and wait for its result.

        Raises:
            TransferCancelledError: `stopped` was set.
            TimeoutError: no byte has arrived for `timeout_s`.
            Exception: any error of the coroutine.
        """
        transfer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        before, since_s = 0, time.monotonic()
        try:
            while not wait([transfer], POLL_S).done:
                self.check()
                if self.num_bytes != before:
                    before, since_s = self.num_bytes, time.monotonic()
                elif time.monotonic() - since_s > self.timeout_s:
                    raise TimeoutError(f"no data for {self.timeout_s:g} s after {before} bytes")
        finally:
            transfer.cancel()
        return transfer.result()

    def check(self) -> None:
        """Raise an error if the caller has cancelled the transfer, or if too many bytes have arrived.

        Raises:
            TransferCancelledError: `stopped` was set.
            ValueError: more than `most_bytes` have arrived.
        """
        if self.stopped.is_set():
            raise TransferCancelledError
        if self.most_bytes is not None and self.num_bytes > self.most_bytes:
            raise ValueError(f"more than {self.most_bytes} bytes")


async def run_together(call: Callable[[Item], Awaitable[Result]], items: Iterable[Item], at_once: int) -> list[Result]:
    """Call a coroutine function for each item, `at_once` at a time, and return the results in order of the items.

    If one call fails, the others are cancelled and its error is raised.
    """
    limit = asyncio.Semaphore(at_once)

    async def run(item: Item) -> Result:
        async with limit:
            return await call(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(item)) for item in items]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
