"""Run a client's transfer, and end it if it stalls, exceeds its limit or is cancelled."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import wait
from typing import TypeVar

POLL_S = 0.1
# A file is sent in parts of this size, and S3 accepts 10,000 parts. The two values limit the memory that an upload
# uses: by default, s3fs holds 10 parts of 50 MiB of each file.
PART_BYTES, PARTS_AT_ONCE = 16 * 2**20, 2
NEVER = threading.Event()

Item = TypeVar("Item")
Result = TypeVar("Result")


class TransferCancelledError(Exception):
    """The caller cancelled a transfer."""


class Transfer:
    """The limits of a transfer, and the number of bytes that have moved so far."""

    def __init__(
        self, timeout_s: float | None, most_bytes: int | None = None, stopped: threading.Event = NEVER
    ) -> None:
        """Store the limits.

        Args:
            timeout_s: time in seconds after which the transfer fails if no byte moves; None if the client itself ends a
                transfer that stalls.
            most_bytes: the transfer fails if more bytes arrive.
            stopped: event that the caller sets to cancel the transfer.
        """
        self.timeout_s = timeout_s
        self.most_bytes = most_bytes
        self.stopped = stopped
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have moved. The client calls this.

        Raises:
            ValueError: more than `most_bytes` have arrived.
        """
        self.num_bytes += num_bytes
        if self.most_bytes is not None and self.num_bytes > self.most_bytes:
            raise ValueError(f"more than {self.most_bytes} bytes")

    def run(self, coroutine: Coroutine[object, object, Result], loop: asyncio.AbstractEventLoop) -> Result:
        """Run a coroutine in the thread of an event loop, and wait for its result.

        Raises:
            TransferCancelledError: `stopped` was set.
            TimeoutError: no byte has moved for `timeout_s`.
            Exception: any error of the coroutine.
        """
        transfer = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            self.wait(lambda: bool(wait([transfer], POLL_S).done))
        finally:
            transfer.cancel()
        return transfer.result()

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until the transfer is done.

        Args:
            is_done: function that waits for `POLL_S` at most, and returns whether the transfer is done.

        Raises:
            TransferCancelledError: `stopped` was set.
            TimeoutError: no byte has moved for `timeout_s`.
        """
        before, since_s = 0, time.monotonic()
        while not is_done():
            self.refuse_stopped()
            if self.num_bytes != before:
                before, since_s = self.num_bytes, time.monotonic()
            elif self.timeout_s is not None and time.monotonic() - since_s > self.timeout_s:
                raise TimeoutError(f"no data for {self.timeout_s:g} s after {before} bytes")

    def refuse_stopped(self) -> None:
        """Raise TransferCancelledError if `stopped` was set."""
        if self.stopped.is_set():
            raise TransferCancelledError


async def run_together(call: Callable[[Item], Awaitable[Result]], items: Sequence[Item], at_once: int) -> list[Result]:
    """Call a coroutine function for each item, `at_once` at a time, and return the results in order of the items.

    If one call fails, the others are cancelled and its error is raised.
    """
    if len(items) == 1:
        return [await call(items[0])]
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
