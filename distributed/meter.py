"""What is measured between two log lines."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from upfield.distributed.reader import Batch


class Meter:
    """Averages between two log lines: loss terms, slices per second, share of time waiting for data; and memory."""

    def __init__(self) -> None:
        """Start at zero."""
        self.restart()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that something other than training takes."""
        begun = time.monotonic()
        yield
        self._since += time.monotonic() - begun

    def restart(self) -> None:
        """Forget everything, the time included."""
        self._terms: list[dict[str, Tensor]] = []
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

    def add(self, terms: dict[str, Tensor], slices: int) -> None:
        """Count a step; its terms, each a scalar, stay on the device until they are read."""
        self._terms.append(terms)
        self._slices += slices

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Give the averages over steps and ranks, and restart. Collective: ALL ranks call it."""
        names = list(self._terms[0])
        means = torch.stack([torch.stack([step[name] for step in self._terms]).mean() for name in names])
        averaged = accelerator.reduce(means, reduction="mean")
        assert isinstance(averaged, Tensor)
        elapsed_s = time.monotonic() - self._since
        values = dict(zip(names, averaged.tolist(), strict=True))
        values |= {"slices_per_s": self._slices / elapsed_s, "data_wait": self._waited_s / elapsed_s}
        values["memory_gb"] = used_memory_bytes(accelerator.device) / 1e9
        self.restart()
        return values


def used_memory_bytes(device: torch.device) -> int:
    """Give the most that this process ever held on a GPU, or what it holds now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
