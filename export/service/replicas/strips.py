"""Strips of slices from several scans, restored together in shared batches."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from upfield.export.scans.restoration import Restorer, slice_batches

# Largest number of strips in one call. A larger one makes new strips wait longer, a smaller one fills batches less.
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
    """How many slices one batch contained, and from how many scans."""

    num_slices: int
    """Slices in the batch. The last batch of a call may be partly filled."""
    num_scans: int
    """Scans that the slices came from."""


@dataclass(frozen=True)
class RestoredStrip:
    """A restored strip, and the batches of its call."""

    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""
    batches: list[SliceBatch] = field(default_factory=list)
    """The batches of the call that restored the strip. Only the first strip of a call lists them."""


def restore_strips(restorer: Restorer, strips: Sequence[Strip], batch_size: int) -> list[RestoredStrip]:
    """Restore strips of one shape together, so that all batches but the last are full.

    Args:
        restorer: the model. The restored values of a slice must not depend on the other slices of the batch.
        strips: `(N, 1 + 2*context, H, W)` each; H and W are the same for all.
        batch_size: largest number of slices in a batch.
    """
    low = np.concatenate([strip.low for strip in strips])
    owners = [strip.owner for strip in strips for _ in strip.low]
    parts, batches = [], []
    for rows, batch in slice_batches(low, restorer.context, batch_size):
        parts.append(restorer.restore(batch))
        batches.append(SliceBatch(len(batch), len(set(owners[rows]))))
    ends = np.cumsum([len(strip.low) for strip in strips])[:-1]
    highs = np.split(np.concatenate(parts), ends)
    return [RestoredStrip(high, batches if number == 0 else []) for number, high in enumerate(highs)]


class StripBatcher:
    """Restores strips in one call at a time. Strips that arrive during a call share the next one."""

    def __init__(self, restorer: Restorer, batch_size: int) -> None:
        """Set the model, and the largest number of slices in a batch."""
        self._restorer, self._batch_size = restorer, batch_size
        self._waiting: list[tuple[Strip, asyncio.Future[RestoredStrip]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def restore(self, strip: Strip) -> RestoredStrip:
        """Restore one strip, in batches that it shares with other strips."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((strip, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while taken := self._take():
            strips = [strip for strip, _ in taken]
            outcomes = await self._restored(strips)
            for (_, future), outcome in zip(taken, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                    # The waiting task may be cancelled before it receives the error. This call keeps asyncio from
                    # logging that the error was never retrieved.
                    future.exception()
                else:
                    future.set_result(outcome)

    async def _restored(self, strips: Sequence[Strip]) -> Sequence[RestoredStrip | Exception]:
        try:
            # A thread keeps the event loop free for health checks and new strips during the computation.
            return await asyncio.to_thread(restore_strips, self._restorer, strips, self._batch_size)
        except Exception as error:
            if len(strips) == 1:
                return [error]
            # An error that one scan causes must not reach the scans that share its batches.
            return [outcome for strip in strips for outcome in await self._restored([strip])]

    def _take(self) -> list[tuple[Strip, asyncio.Future[RestoredStrip]]]:
        """Remove and return the strip that has waited longest, and the next strips of its shape."""
        waiting = [pair for pair in self._waiting if not pair[1].done()]
        taken = [pair for pair in waiting if pair[0].low.shape[1:] == waiting[0][0].low.shape[1:]][:MAX_STRIPS]
        futures = {id(future) for _, future in taken}
        self._waiting = [pair for pair in waiting if id(pair[1]) not in futures]
        return taken
