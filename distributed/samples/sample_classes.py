"""The classes of samples whose shares are mixed or logged: by kind, or by cohort."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError
from upfield.distributed.configuration import MixConfig
from upfield.distributed.samples.mixture import Mixture
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class SampleClasses:
    """The class of each sample of a split."""

    place: Path | str
    """Folder or address of the set, for messages."""
    names: tuple[str, ...]
    """Names of the classes."""
    numbers: NDArray[np.unsignedinteger]
    """`(samples,)`: number of each sample's class in `names`."""
    prefix: str = ""
    """First part of the names in the log."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of samples in each class."""
        return dict(zip(self.names, self.count(self.numbers), strict=True))

    def count(self, numbers: NDArray[np.unsignedinteger]) -> list[int]:
        """Count how often each class occurs among class numbers `(N,)`."""
        # bincount would copy the numbers of millions of samples to 64 bits.
        return [int(np.count_nonzero(numbers == number)) for number in range(len(self.names))]

    def shares(self, samples: NDArray[np.int64]) -> dict[str, float]:
        """Compute the share of each class among samples `(N,)`, by name for the log."""
        counts = self.count(self.numbers[samples])
        names = (f"share_{self.prefix}{name}" for name in self.names)
        return {name: count / len(samples) for name, count in zip(names, counts, strict=True)}


def find_classes(split: ShardSplit, mix: MixConfig) -> list[SampleClasses]:
    """Find the classes of a split's samples: by kind, and then by cohort if the mix is by cohort."""
    by = {"": [kind for _, _, kind, _ in split.units]}
    if mix.cohort:
        by["cohort_"] = [cohort for cohort, _, _, _ in split.units]
    classes: list[SampleClasses] = []
    for prefix, labels in by.items():
        names = sorted(set(labels))
        of_unit = np.array([names.index(label) for label in labels], dtype=np.min_scalar_type(len(names)))
        classes.append(SampleClasses(split.root, tuple(names), of_unit[split.unit_numbers], prefix))
    return classes


def shares_of(classes: Iterable[SampleClasses], samples: NDArray[np.int64]) -> dict[str, float]:
    """Compute the share of each class, by kind and by cohort, among samples `(N,)`, by name for the log."""
    return {name: share for by in classes for name, share in by.shares(samples).items()}


def choose_mixture(mix: MixConfig, classes: SampleClasses, groups: int) -> Mixture:
    """Determine the classes to mix.

    Raises:
        InputError: a share has no samples, or a class has fewer samples than there are groups.
    """
    shares, sizes = mix.shares or {}, classes.sizes
    key = f"data.mix.{mix.by}"
    if unknown := [name for name in shares if name not in sizes]:
        there = ", ".join(f"{name} ({count} samples)" for name, count in sizes.items())
        raise InputError(
            f"{key}: the train split of {classes.place} has no samples of {', '.join(unknown)}. It has {there}."
        )
    # The order must not depend on the order in which the shares are written.
    used = {name: shares[name] for name in sorted(shares) if shares[name] > 0}
    fewest = min(used, key=lambda name: sizes[name])
    if sizes[fewest] < groups:
        raise InputError(
            f"data.groups: expected at most {sizes[fewest]}, the number of {fewest} samples in the train split, found "
            f"{groups}. Choose a smaller --data.groups."
        )
    return Mixture(tuple(used), tuple(used.values()), mix.per or "batch", _renumber(classes, used))


def describe_mix(mixture: Mixture, classes: SampleClasses, steps: int, batch_size: int) -> str:
    """Return a sentence about a mix: the length of an epoch, and what it repeats, reads in part, or leaves out."""
    counts = mixture.count(steps, batch_size).sum(axis=0).tolist()
    parts = [
        _describe_class(name, share, count, classes.sizes[name])
        for name, share, count in zip(mixture.names, mixture.shares, counts, strict=True)
    ]
    if unread := [name for name in classes.names if name not in mixture.names]:
        parts.append(f"no share for {', '.join(unread)}")
    length = f"an epoch has {steps} steps with {steps * batch_size} samples, as many as without a mix"
    return f"mix per {mixture.per}: {length}: {'; '.join(parts)}"


def _describe_class(name: str, share: float, count: int, size: int) -> str:
    if count > size:
        return f"{name} {share:g}, {count} samples, each of {size} about {count / size:.3g} times"
    return f"{name} {share:g}, {count} of {size} samples"


def _renumber(classes: SampleClasses, used: Mapping[str, float]) -> NDArray[np.unsignedinteger]:
    """Number the classes of the samples `(N,)` in the order of `used`; samples of other classes get a larger number."""
    order = [*used]
    new = [order.index(name) if name in used else len(order) for name in classes.names]
    return np.array(new, dtype=np.min_scalar_type(len(order)))[classes.numbers]
