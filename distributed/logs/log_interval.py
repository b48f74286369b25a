"""The measurements between two log lines."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.samples.reader import Batch


class LogInterval:
    """Measures the interval between two log lines: mean loss terms, slices per second, waiting for data, and memory.

    The sums of the terms are part of the progress, so a restart between two log lines does not change the means.
    """

    def __init__(self, progress: TrainingProgress) -> None:
        """Continue the interval whose sums the progress holds."""
        self._progress = progress
        self._restart()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the `with` block from the interval."""
        begun = time.monotonic()
        yield
        self._since += time.monotonic() - begun

    def _restart(self) -> None:
        self._slices = 0
        self._waited_s = 0.0
        self._since = time.monotonic()

    def time_waits(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches and measure how long each took to arrive."""
        iterator = iter(loader)
        while True:
            begun = time.monotonic()
            batch = next(iterator, None)
            self._waited_s += time.monotonic() - begun
            if batch is None:
                return
            yield batch

    def add(self, slices: int) -> None:
        """Count the slices of a global batch."""
        self._slices += slices

    def finish(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the figures of the interval, and start the next interval. Collective: ALL ranks call it.

        `data_wait` is the share of time that the rank with the longest waits spent waiting for data. `memory_gb` is the
        memory of the rank that uses the most.
        """
        progress = self._progress
        values = {name: total / progress.pending_steps for name, total in progress.pending.items()}
        progress.pending, progress.pending_steps = {}, 0
        elapsed_s = time.monotonic() - self._since
        own = [self._waited_s / elapsed_s, used_memory_bytes(accelerator.device) / 1e9]
        rows = accelerator.gather(torch.tensor([own], device=accelerator.device))
        assert isinstance(rows, Tensor)
        data_wait, memory_gb = rows.amax(dim=0).tolist()
        values |= {"slices_per_s": self._slices / elapsed_s, "data_wait": data_wait, "memory_gb": memory_gb}
        self._restart()
        return values


def used_memory_bytes(device: torch.device) -> int:
    """Return this process's peak memory on a GPU, or its current memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
