"""Choose the samples that a preview shows: spread over cohorts, kinds and subjects, and the same for equal seeds."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair, group_volumes, read_keys

T = TypeVar("T")

BACKGROUND = 0.1
LEAST_ANATOMY = 0.2
READ_PER_GROUP, READ_PER_PAIR = 24, 6


@dataclass(frozen=True)
class Slice:
    """One sample and its key."""

    key: SampleKey
    """Key of the sample."""
    low: NDArray[np.float32]
    """`(1 + 2*context, Y, Z)` in [0, 1]."""
    high: NDArray[np.float32]
    """`(Y, Z)` in [0, 1]."""

    @property
    def centre(self) -> NDArray[np.float32]:
        """The low-field slice itself, `(Y, Z)`, without its neighbours."""
        return self.low[len(self.low) // 2]


@dataclass(frozen=True)
class Group:
    """The slices of one cohort and kind that a preview shows."""

    cohort: str
    """Cohort name."""
    kind: str
    """`real` or `synthetic`."""
    shown: list[Slice]
    """Slices drawn as pictures."""
    measured: list[Slice]
    """Slices measured for histograms; they include `shown`."""


def choose_groups(split: ShardSplit, pairs: int, seed: int) -> list[Group]:
    """Choose pairs that show anatomy, divided evenly among cohorts and kinds, and then among subjects.

    Args:
        split: split to choose from.
        pairs: number of pairs.
        seed: seed of the choice.

    Returns:
        A group for every cohort and kind of the split, in order. Some groups are empty if `pairs` is too small.
    """
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    keys = read_keys(split)
    for sample, key in enumerate(keys):
        members[key.cohort, key.kind].append(sample)
    names = sorted(members)
    shares = share_evenly([len(members[name]) for name in names], pairs)
    groups: list[Group] = []
    for name, share in zip(names, shares, strict=True):
        drawn = sorted(members[name], key=lambda sample: _slice_rank(keys[sample], seed))
        order = _take_turns(drawn, lambda sample: keys[sample].subject)
        read = order[: READ_PER_GROUP + READ_PER_PAIR * share]
        split.request(read)
        slices = [read_slice(split, sample) for sample in read]
        measured = _fullest_first(slices, share)
        shown = sorted(measured[:share], key=lambda item: item.key)
        groups.append(Group(*name, shown, measured))
    return groups


def _slice_rank(key: SampleKey, seed: int) -> bytes:
    """Return a pseudo-random sort key of a slice. It does not depend on whether the slice is real or synthetic."""
    return hashlib.sha256(f"{seed}/{key.cohort}/{key.subject}/{key.x}".encode()).digest()


def choose_volumes(split: ShardSplit, pairs: int, seed: int) -> list[VolumePair]:
    """Choose pairs of volumes evenly from all cohorts and kinds; both kinds prefer the same subjects.

    Args:
        split: split to choose from.
        pairs: number of pairs of volumes.
        seed: seed of the choice.

    Returns:
        The pairs, sorted by subject, real ones first.
    """
    volumes = group_volumes(split)
    members = {(pair.first.cohort, pair.first.subject, pair.first.kind, pair.first.variant): pair for pair in volumes}
    names = sorted({(cohort, kind) for cohort, _, kind, _ in members})
    turns = _subject_turns({(cohort, subject) for cohort, subject, _, _ in members}, seed)
    # The second variant of a subject is chosen only after every subject has its first.
    queues = [
        sorted((unit for unit in members if (unit[0], unit[2]) == name), key=lambda unit: (unit[3], turns[unit[:2]]))
        for name in names
    ]
    shares = share_evenly([len(queue) for queue in queues], pairs)
    chosen = sorted(unit for queue, share in zip(queues, shares, strict=True) for unit in queue[:share])
    return [members[unit] for unit in chosen]


def _subject_turns(subjects: set[tuple[str, str]], seed: int) -> dict[tuple[str, str], int]:
    order = np.random.default_rng(seed).permutation(len(subjects)).tolist()
    return dict(zip(sorted(subjects), order, strict=True))


def read_slice(split: ShardSplit, sample: int) -> Slice:
    """Read one sample as training reads it.

    Raises:
        ShardSetError: its shard is missing, truncated, or holds values outside 0..1.
    """
    low, high = split.read_checked([sample])
    return Slice(SampleKey.parse(split.key(sample)), low[0].astype(np.float32), high[0, 0].astype(np.float32))


def share_evenly(sizes: Sequence[int], total: int) -> list[int]:
    """Divide `total` over groups as evenly as their sizes allow; the first groups get the remainder."""
    shares = [0] * len(sizes)
    for _ in range(min(total, sum(sizes))):
        open_groups = [i for i, size in enumerate(sizes) if shares[i] < size]
        shares[min(open_groups, key=lambda i: shares[i])] += 1
    return shares


def _take_turns(items: Iterable[T], subject_of: Callable[[T], str]) -> list[T]:
    """Order items in rounds, each with one item of every subject that has items left."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, T]] = []
    for item in items:
        subject = subject_of(item)
        turns.append((seen[subject], item))
        seen[subject] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])]


def _fullest_first(slices: list[Slice], least: int) -> list[Slice]:
    """Return slices that show anatomy, alternating between subjects; if fewer than `least`, add the fullest others."""

    def filled(item: Slice) -> float:
        return float((item.high > BACKGROUND).mean())

    kept = [item for item in slices if filled(item) >= LEAST_ANATOMY]
    others = sorted((item for item in slices if filled(item) < LEAST_ANATOMY), key=filled, reverse=True)
    return _take_turns(kept, lambda item: item.key.subject) + others[: max(least - len(kept), 0)]
