"""The mix: which class of samples each position of a global batch is taken from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Number of decimals of a share that are used.
DECIMALS = 6


@dataclass
class Mixture:
    """The classes that are mixed, and their shares."""

    names: tuple[str, ...]
    """Names of the classes that have a share."""
    shares: tuple[float, ...]
    """Share of each class, which add up to 1."""
    per: Literal["batch", "epoch"]
    """Whether each global batch or only the epoch has these shares."""
    numbers: NDArray[np.integer]
    """`(samples,)`: number of each sample's class, or another number for samples without a share."""
    _counts: NDArray[np.int64] | None = field(init=False, default=None)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def members(self) -> list[NDArray[np.int32]]:
        """Return the sample numbers `(samples of the class,)` of each class, ascending."""
        return [np.flatnonzero(self.numbers == number).astype(np.int32) for number in range(self.num_classes)]

    def count(self, steps: int, batch_size: int) -> NDArray[np.int64]:
        """Divide an epoch among the classes: the number of samples of each class per batch, or one row per epoch.

        Args:
            steps: number of global batches in the epoch.
            batch_size: number of samples in a global batch.

        Returns:
            `(steps, classes)`, or `(1, classes)` if only the epoch has the shares.
        """
        if self.per == "epoch":
            return count_classes(self.shares, steps * batch_size, 1)
        return count_classes(self.shares, batch_size, steps)

    def draw_positions(self, rng: np.random.Generator, steps: int, batch_size: int, groups: int) -> "ClassPositions":
        """Draw the class of each position of an epoch.

        Args:
            rng: generator of this epoch.
            steps: number of global batches in the epoch.
            batch_size: number of samples in a global batch.
            groups: number of groups of the batch.
        """
        # The numbers are the same in each epoch.
        if self._counts is None:
            self._counts = self.count(steps, batch_size)
        numbers = np.arange(self.num_classes, dtype=np.min_scalar_type(self.num_classes))
        classes = np.repeat(np.tile(numbers, len(self._counts)), self._counts.ravel()).reshape(len(self._counts), -1)
        rng.permuted(classes, axis=1, out=classes)
        return ClassPositions(classes.reshape(steps, batch_size), groups)


@dataclass
class ClassPositions:
    """The class of each position of an epoch."""

    classes: NDArray[np.unsignedinteger]
    """`(steps, batch_size)`: number of the class."""
    groups: int
    """Number of groups of the batch."""
    _before: dict[tuple[int, int], NDArray[np.int64]] = field(init=False, default_factory=dict)

    def before(self, group: int, number: int) -> NDArray[np.int64]:
        """Count the positions of a class in a group before each step: `(steps + 1,)`, the last one is their total."""
        if (group, number) not in self._before:
            steps, batch_size = self.classes.shape
            own = self.classes.reshape(steps, self.groups, batch_size // self.groups)[:, group]
            counts = np.count_nonzero(own == number, axis=1)
            self._before[group, number] = np.concatenate([[0], np.cumsum(counts)])
        return self._before[group, number]


def count_classes(shares: Sequence[float], batch_size: int, steps: int) -> NDArray[np.int64]:
    """Divide each batch among the classes.

    The number in each batch differs from its share by less than one sample, and so does the number in all batches up to
    any step. This is the fair scheduling of periodic tasks of Baruah et al. (Algorithmica 15, 1996): in each step, the
    classes that must be rounded up soonest are rounded up.

    Args:
        shares: share of each class, which add up to 1.
        batch_size: number of samples in a batch.
        steps: number of batches.

    Returns:
        `(steps, classes)` int64.
    """
    exact = [Fraction(share).limit_denominator(10**DECIMALS) for share in shares]
    exact = [share / sum(exact) for share in exact]
    unit = lcm(*(share.denominator for share in exact))
    whole, rests = zip(*(divmod(int(share * unit) * batch_size, unit) for share in exact), strict=True)
    rows: list[list[int]] = []
    for added in _round_fairly(rests, unit):
        rows.append(added)
        if len(rows) == steps:
            break
    repeats = -(-steps // len(rows))
    return np.tile(np.array(whole) + np.array(rows), (repeats, 1))[:steps]


def _round_fairly(rests: Sequence[int], unit: int) -> Iterator[list[int]]:
    """Yield, for each step of one period, the number that is added to each class: 0 or 1.

    Args:
        rests: part of a sample that each class is owed per step, in units of 1/`unit`.
        unit: number of units in a sample.
    """
    num_added = sum(rests) // unit
    owed = [0] * len(rests)
    while True:
        owed = [debt + rest for debt, rest in zip(owed, rests, strict=True)]
        eligible = [number for number, debt in enumerate(owed) if debt > 0 and rests[number]]
        eligible.sort(key=lambda number: list(_deadlines(owed[number], rests[number], unit)))
        added = [int(number in eligible[:num_added]) for number in range(len(rests))]
        owed = [debt - unit * more for debt, more in zip(owed, added, strict=True)]
        yield added
        if not any(owed):
            return


def _deadlines(debt: int, rest: int, unit: int) -> Iterator[tuple[int, bool]]:
    """Yield the steps after which each of the next samples is late, and whether the following one cannot wait longer.

    A list of these is the priority of a class: the smallest list goes first.
    """
    for number in range(1, 33):
        steps, excess = divmod(number * unit - debt, rest)
        yield steps + bool(excess), not excess
        if not excess:
            return
