"""How many scans the service takes in, and whose turn it is."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from upfield.export.service.errors import RefusedError
from upfield.export.service.scan_requests.scan_request import RequestProgress


class AdmissionQueue:
    """The admitted scans: a few are processed at once, a few wait in the order of their arrival."""

    def __init__(self, scans_at_once: int, max_waiting: int) -> None:
        """Set how many scans are processed at once, and how many may wait besides."""
        self.waiting: list[RequestProgress] = []
        self.num_admitted = 0
        self._limit = scans_at_once + max_waiting
        self._scans_at_once = scans_at_once
        self._slots = asyncio.Semaphore(scans_at_once)
        self._mean_s = 1.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a scan that is about to be received.

        Raises:
            RefusedError: 503, all places are taken.
        """
        if self.num_admitted >= self._limit:
            after_s = self.retry_after_s()
            raise RefusedError(
                503, f"The service already has {self._limit} scans, its limit. Try again in {after_s} s.", after_s
            )
        self.num_admitted += 1
        try:
            yield
        finally:
            self.num_admitted -= 1

    @asynccontextmanager
    async def turn(self, progress: RequestProgress) -> AsyncIterator[None]:
        """Wait until it is this scan's turn, and keep its slot until the block ends."""
        progress.state = "waiting"
        self.waiting.append(progress)
        try:
            await self._slots.acquire()
        finally:
            self.waiting.remove(progress)
        started = time.monotonic()
        try:
            yield
        finally:
            self._slots.release()
            self._mean_s += 0.2 * (time.monotonic() - started - self._mean_s)

    def position(self, progress: RequestProgress) -> int:
        """Return the place of a scan in the queue, counted from 1; 0 if it does not wait."""
        return next((place for place, other in enumerate(self.waiting, start=1) if other is progress), 0)

    def retry_after_s(self) -> int:
        """Estimate when there will be a place again, in seconds, from how long recent scans took."""
        return max(math.ceil(self._mean_s * self.num_admitted / self._scans_at_once), 1)
