"""Strips of slices of several scans, restored together in batches of one constant shape."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from upfield.export.scan import Restorer
from upfield.sharding.errors import RunError


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
class Batch:
    """What one batch was made of."""

    slices: int
    """Real ones; the rest was filled up."""
    scans: int
    """How many scans they were of."""


@dataclass(frozen=True)
class Restored:
    """A strip as it comes back."""

    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""
    batches: list[Batch] = field(default_factory=list)
    """The batches that were run, told with the first of the strips that shared them."""


def restore_strips(restorer: Restorer, strips: Sequence[Strip], batch_size: int) -> list[Restored]:
    """Restore strips together: those of one shape follow each other in batches, of which only the last is filled up.

    Every batch has the same number of slices, as those of `enhance` have: ONNX Runtime's values depend on the shape of
    a batch, but not on what else is in it, so that a scan's values do not depend on its company.

    Args:
        restorer: the model.
        strips: each `(N, 1 + 2*context, H, W)`.
        batch_size: slices of a batch.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, strip in enumerate(strips):
        by_shape[strip.low.shape[1:]].append(number)
    high: dict[int, NDArray[np.float32]] = {}
    batches: list[Batch] = []
    for numbers in by_shape.values():
        low = np.concatenate([strips[number].low for number in numbers])
        owners = [strips[number].owner for number in numbers for _ in strips[number].low]
        parts = []
        for start in range(0, len(low), batch_size):
            batch = low[np.minimum(np.arange(start, start + batch_size), len(low) - 1)]
            kept = owners[start : start + batch_size]
            parts.append(restorer.restore(batch)[: len(kept)])
            batches.append(Batch(len(kept), len(set(kept))))
        ends = np.cumsum([len(strips[number].low) for number in numbers])[:-1]
        high.update(zip(numbers, np.split(np.concatenate(parts), ends), strict=True))
    return [Restored(high[number], batches if number == 0 else []) for number in range(len(strips))]
