"""Strips of slices from several scans, restored together in shared batches."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from upfield.export.scans.restoration import Restorer

# Strips that are restored in one call: few enough that new strips wait briefly, enough to fill the batches.
MAX_STRIPS = 4


@dataclass(frozen=True)
class Strip:
    """Adjacent slices of one scan."""

    owner: str
    """The scan's id."""
    low: NDArray[np.float32]
    """`(N, 1 + 2*context, H, W)` in [0, 1]."""


@dataclass(frozen=True)
class SliceBatch:
    """What one batch contained."""

    slices: int
    """Slices; the last batch of a call may not be full."""
    scans: int
    """Scans that the slices came from."""


@dataclass(frozen=True)
class RestoredStrip:
    """A strip after restoration."""

    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""
    batches: list[SliceBatch] = field(default_factory=list)
    """The batches that were run; the first of the strips that shared them carries the list."""


def restore_strips(restorer: Restorer, strips: Sequence[Strip], batch_size: int) -> list[RestoredStrip]:
    """Restore strips of one shape together, so that only the last batch may not be full.

    Args:
        restorer: the model, whose values for a slice do not depend on the other slices of its batch.
        strips: each `(N, 1 + 2*context, H, W)`, with H and W the same for all.
        batch_size: slices of a batch.
    """
    low = np.concatenate([strip.low for strip in strips])
    owners = [strip.owner for strip in strips for _ in strip.low]
    parts, batches = [], []
    for start in range(0, len(low), batch_size):
        batch_owners = owners[start : start + batch_size]
        parts.append(restorer.restore(low[start : start + batch_size]))
        batches.append(SliceBatch(len(batch_owners), len(set(batch_owners))))
    ends = np.cumsum([len(strip.low) for strip in strips])[:-1]
    highs = np.split(np.concatenate(parts), ends)
    return [RestoredStrip(high, batches if number == 0 else []) for number, high in enumerate(highs)]


class StripBatcher:
    """Restores strips in one call after the other; strips that arrive during a call share the next one."""

    def __init__(self, restorer: Restorer, batch_size: int) -> None:
        """Set the model, and how many slices it restores at once."""
        self._restorer, self._batch_size = restorer, batch_size
        self._waiting: list[tuple[Strip, asyncio.Future[RestoredStrip]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def restore(self, strip: Strip) -> RestoredStrip:
        """Restore one strip, in batches shared with others."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((strip, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while taken := self._take():
            strips = [strip for strip, _ in taken]
            outcomes: Sequence[RestoredStrip | Exception]
            try:
                # In a thread, so that this process keeps answering while it computes.
                outcomes = await asyncio.to_thread(restore_strips, self._restorer, strips, self._batch_size)
            except Exception as error:
                outcomes = [error] * len(taken)
            for (_, answer), outcome in zip(taken, outcomes, strict=True):
                if answer.done():
                    continue
                if isinstance(outcome, Exception):
                    answer.set_exception(outcome)
                    # The waiting task may be cancelled before it sees the error. This call keeps asyncio from
                    # reporting that nobody has retrieved it.
                    answer.exception()
                else:
                    answer.set_result(outcome)

    def _take(self) -> list[tuple[Strip, asyncio.Future[RestoredStrip]]]:
        """Take the strip that has waited longest, and the next strips of its shape."""
        waiting = [pair for pair in self._waiting if not pair[1].done()]
        taken = [pair for pair in waiting if pair[0].low.shape[1:] == waiting[0][0].low.shape[1:]][:MAX_STRIPS]
        answers = {id(answer) for _, answer in taken}
        self._waiting = [pair for pair in waiting if id(pair[1]) not in answers]
        return taken
