"""Admission control: how many scans the service accepts, and in which order it processes them."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from upfield.export.service.errors import RefusedError
from upfield.export.service.scan_requests.scan_request import RequestProgress


class AdmissionQueue:
    """The admitted scans. Some are processed at the same time, and the others wait in the order of their arrival."""

    def __init__(self, scans_at_once: int, max_waiting: int) -> None:
        """Set how many scans are processed at the same time, and how many more may wait."""
        self.waiting: list[RequestProgress] = []
        self.num_admitted = 0
        self._limit = scans_at_once + max_waiting
        self._scans_at_once = scans_at_once
        self._slots = asyncio.Semaphore(scans_at_once)
        self._mean_s = 1.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve a place for a scan that is about to be received, until the block ends.

        Raises:
            RefusedError: all places are taken (503).
        """
        if self.num_admitted >= self._limit:
            after_s = self.retry_after_s()
            message = f"The service already has {self._limit} scans, which is its limit. Try again in {after_s} s."
            raise RefusedError(503, message, after_s)
        self.num_admitted += 1
        try:
            yield
        finally:
            self.num_admitted -= 1

    @asynccontextmanager
    async def turn(self, progress: RequestProgress) -> AsyncIterator[None]:
        """Wait for this scan's turn, and hold its processing slot until the block ends."""
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
        """Return a scan's position in the queue, counted from 1; 0 if the scan is not waiting."""
        return next((place for place, other in enumerate(self.waiting, start=1) if other is progress), 0)

    def retry_after_s(self) -> int:
        """Estimate in how many seconds a place will be free, from the processing times of recent scans."""
        return max(math.ceil(self._mean_s * self.num_admitted / self._scans_at_once), 1)
