"""What is measured between two log lines."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.samples.reader import Batch


class Meter:
    """Averages between two log lines: loss terms, slices per second, share of time waiting for data; and memory.

    The terms are kept with the progress, so that a line that a checkpoint falls into is the same after it.
    """

    def __init__(self, progress: TrainingProgress) -> None:
        """Start where the progress stands."""
        self._progress = progress
        self._restart()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that something other than training takes."""
        begun = time.monotonic()
        yield
        self._since += time.monotonic() - begun

    def _restart(self) -> None:
        self._slices = 0
        self._waited_s = 0.0
        self._since = time.monotonic()

    def waiting(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on and measure how long they took to come."""
        iterator = iter(loader)
        while True:
            begun = time.monotonic()
            batch = next(iterator, None)
            self._waited_s += time.monotonic() - begun
            if batch is None:
                return
            yield batch

    def add(self, terms: Mapping[str, float], slices: int) -> None:
        """Count a step with its terms, means over all ranks; without terms one that was left out."""
        self._slices += slices
        if terms:
            pending = self._progress.pending
            for name, value in terms.items():
                pending[name] = pending.get(name, 0.0) + value
            self._progress.pending_steps += 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Give the averages, and restart. Collective: ALL ranks call it.

        Time spent waiting and memory are those of the rank that waited longest and of the one that holds most.
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
    """Give the most that this process ever held on a GPU, or what it holds now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
