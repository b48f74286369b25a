"""The measurements between two log lines."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.samples.reader import Batch


class LogInterval:
    """Mean loss terms, slices per second, share of time spent waiting for data, and memory, between two log lines.

    The sums of the terms are part of the progress, so that a log line that spans a restart is the same as without it.
    """

    def __init__(self, progress: TrainingProgress) -> None:
        """Continue the interval that the progress holds."""
        self._progress = progress
        self._restart()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of something other than training."""
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

    def add(self, terms: Mapping[str, float], slices: int) -> None:
        """Count a step.

        Args:
            terms: its loss terms, means over all ranks; empty if the batch was skipped.
            slices: size of the global batch.
        """
        self._slices += slices
        if terms:
            pending = self._progress.pending
            for name, value in terms.items():
                pending[name] = pending.get(name, 0.0) + value
            self._progress.pending_steps += 1

    def finish(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the interval's figures and start the next one. Collective: ALL ranks call it.

        Waiting time is that of the rank that waited longest, and memory that of the rank that holds most.
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
