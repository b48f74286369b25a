"""Strips of slices of several scans, restored together in shared batches."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import RunError
from upfield.export.scans.restoration import Restorer

# Strips that are restored at once: few enough that whoever waits is soon taken in, enough to fill the last batches.
MAX_STRIPS = 4


class EngineError(RunError):
    """Slices cannot be restored now; it is the service that is in trouble, not the scan."""


@dataclass(frozen=True)
class Strip:
    """Neighbouring slices of one scan."""

    owner: str
    """Which scan's."""
    low: NDArray[np.float32]
    """`(N, 1 + 2*context, H, W)` in [0, 1]."""


@dataclass(frozen=True)
class SliceBatch:
    """What one batch was made of."""

    slices: int
    """How many; the last batch of a call may have room left."""
    scans: int
    """How many scans they were of."""


@dataclass(frozen=True)
class Restored:
    """A strip as it comes back."""

    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""
    batches: list[SliceBatch] = field(default_factory=list)
    """The batches that were run, told with the first of the strips that shared them."""


def restore_strips(restorer: Restorer, strips: Sequence[Strip], batch_size: int) -> list[Restored]:
    """Restore strips of one shape together: they follow each other in batches, so that only the last has room left.

    Args:
        restorer: the model, whose values for a slice do not depend on what else is in its batch.
        strips: each `(N, 1 + 2*context, H, W)`, with H and W the same for all.
        batch_size: slices of a batch.
    """
    low = np.concatenate([strip.low for strip in strips])
    owners = [strip.owner for strip in strips for _ in strip.low]
    parts, batches = [], []
    for start in range(0, len(low), batch_size):
        of_batch = owners[start : start + batch_size]
        parts.append(restorer.restore(low[start : start + batch_size]))
        batches.append(SliceBatch(len(of_batch), len(set(of_batch))))
    ends = np.cumsum([len(strip.low) for strip in strips])[:-1]
    high = np.split(np.concatenate(parts), ends)
    return [Restored(one, batches if number == 0 else []) for number, one in enumerate(high)]


class Batcher:
    """Restores strips one call after the other; those that come during a call share the next one."""

    def __init__(self, restorer: Restorer, batch_size: int) -> None:
        """Set the model, and how many slices it restores at once."""
        self._restorer, self._batch_size = restorer, batch_size
        self._waiting: list[tuple[Strip, asyncio.Future[Restored]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def restore(self, strip: Strip) -> Restored:
        """Restore one strip, in batches shared with others."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((strip, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while taken := self._take():
            strips = [strip for strip, _ in taken]
            found: Sequence[Restored | Exception]
            try:
                # In a thread, so that this process answers while it computes.
                found = await asyncio.to_thread(restore_strips, self._restorer, strips, self._batch_size)
            except Exception as error:
                found = [error] * len(taken)
            for (_, answer), one in zip(taken, found, strict=True):
                if answer.done():
                    continue
                if isinstance(one, Exception):
                    answer.set_exception(one)
                    # Whoever waits may be cancelled before it sees it, and nobody is to be told of that.
                    answer.exception()
                else:
                    answer.set_result(one)

    def _take(self) -> list[tuple[Strip, asyncio.Future[Restored]]]:
        """Take the strip that has waited longest, and the next ones of its shape."""
        waiting = [each for each in self._waiting if not each[1].done()]
        taken = [each for each in waiting if each[0].low.shape[1:] == waiting[0][0].low.shape[1:]][:MAX_STRIPS]
        answers = {id(answer) for _, answer in taken}
        self._waiting = [each for each in waiting if id(each[1]) not in answers]
        return taken
