"""The sample order: a pure function of seed, epoch, groups and mix, so each position of each epoch is known in advance.

Therefore every rank takes the same number of steps, any number of processes trains on the same batches, and a run
resumes exactly from its step number.

The shards are put into a random sequence that depends on the seed only. The sequence of their samples is cut into G
pieces of equal length, one for each group, and each global batch takes an equal number of samples from each group.
What this means for the shards of a node:

- No shard ever moves to another group. Only the shards that are cut, at most G - 1, belong to two groups. A later epoch
  therefore finds its shards in the cache of the same node.
- Another seed or G, or a set that was extended, deals all shards again.
- Samples of one group share a batch only if they are in the same window. Any two groups share every batch. With the
  same number of shards in all windows together, several groups mix the subjects of an epoch as well as one group does,
  or better (benchmarks/tables/mixing.txt).

With a mix, each class of samples has a sequence and pieces of its own. In each group, a class is read in passes: a pass
visits all samples of the piece, and the next pass begins when it ends. Without a mix there is one class and one pass,
and with one group its samples are shuffled over the whole set.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from upfield.distributed.samples.mixture import ClassPositions, Mixture

# The first number of a random generator's key says what it is for.
SAMPLES, DEALING, POSITIONS = range(3)


def make_generator(seed: int, epoch: int, *key: int) -> np.random.Generator:
    """Return a generator of random numbers that depend on the seed, the epoch and the key alone."""
    # The first stream needs no key of its own: the order without groups is that of earlier versions.
    return np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=key if any(key) else ()))


@dataclass(frozen=True)
class GroupPiece:
    """The samples of one class in one group, as parts of shards. Samples are numbered within their class."""

    shards: NDArray[np.int64]
    """`(parts,)` shard numbers, ascending."""
    begins: NDArray[np.int64]
    """`(parts,)` first sample of each part."""
    ends: NDArray[np.int64]
    """`(parts,)` sample after the last one of each part."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of samples in each part, `(parts,)`."""
        return self.ends - self.begins


def deal_shards(seed: int, starts: NDArray[np.int64], groups: int) -> list[GroupPiece]:
    """Cut the samples of a class into one piece per group, along a random sequence of the shards.

    Args:
        seed: seed of the run.
        starts: `(shards + 1,)`, number of samples of the class before each shard, and their total.
        groups: number of groups.

    Returns:
        The piece of each group. Their lengths differ by at most one sample.
    """
    sequence = make_generator(seed, 0, DEALING).permutation(len(starts) - 1)
    sizes = np.diff(starts)[sequence]
    ends = np.cumsum(sizes)
    cuts = [int(starts[-1]) * group // groups for group in range(groups + 1)]
    pieces: list[GroupPiece] = []
    for begin, end in itertools.pairwise(cuts):
        reach = slice(int(ends.searchsorted(begin, "right")), int(ends.searchsorted(end, "left")) + 1)
        shards, before = sequence[reach], ends[reach] - sizes[reach]
        first, last = np.maximum(begin - before, 0), np.minimum(end - before, sizes[reach])
        parts = np.flatnonzero(last > first)
        parts = parts[shards[parts].argsort()]
        shards = shards[parts]
        pieces.append(GroupPiece(shards, starts[shards] + first[parts], starts[shards] + last[parts]))
    return pieces


@dataclass
class Stream:
    """The samples of one class in one group, in the order in which one pass after another visits them."""

    seed: int
    """Seed of the run."""
    key: tuple[int, int]
    """Number of the group and of the class."""
    piece: GroupPiece
    """The samples."""
    window_shards: int
    """Number of shards in a window."""
    members: NDArray[np.integer] | None = None
    """`(samples of the class,)` sample number of each; None if the class has all samples."""
    num_samples: int = field(init=False)
    """Number of samples in a pass."""
    _pass: tuple[int, int] = field(init=False, default=(-1, -1))
    _samples: NDArray[np.int64] = field(init=False, default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        """Count the samples."""
        self.num_samples = int(self.piece.sizes.sum())

    @property
    def has_one_window(self) -> bool:
        """Whether all shards fit into one window."""
        return len(self.piece.shards) <= self.window_shards

    def windows(self, epoch: int, number: int) -> list[NDArray[np.int64]]:
        """Compute the windows of a pass, in order: the numbers `(up to window_shards,)` of their parts."""
        return self._windows(make_generator(self.seed, epoch, SAMPLES, *self.key, number))

    def _windows(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        parts = rng.permutation(len(self.piece.shards))
        return [parts[i : i + self.window_shards] for i in range(0, len(parts), self.window_shards)]

    def take(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        """Return the sample numbers `(count,)` at the positions from `start` on, which later passes continue."""
        taken: list[NDArray[np.int64]] = []
        while count:
            number, position = divmod(start, self.num_samples)
            taken.append(self._read_pass(epoch, number)[position : position + count])
            start, count = start + len(taken[-1]), count - len(taken[-1])
        return taken[0] if len(taken) == 1 else np.concatenate([np.empty(0, dtype=np.int64), *taken])

    def _read_pass(self, epoch: int, number: int) -> NDArray[np.int64]:
        if self._pass != (epoch, number):
            # Of many subjects, one order is the largest object in memory, so the previous one is released first.
            self._samples = np.empty(0, dtype=np.int64)
            self._samples, self._pass = self.order(epoch, number), (epoch, number)
        return self._samples

    def order(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Compute the order `(num_samples,)` in which a pass visits the samples.

        First the shards are permuted, then the samples within each window of shards.
        """
        rng = make_generator(self.seed, epoch, SAMPLES, *self.key, number)
        begins, ends = self.piece.begins.tolist(), self.piece.ends.tolist()
        order, done = np.empty(self.num_samples, dtype=np.int64), 0
        for window in self._windows(rng):
            samples = np.concatenate([np.arange(begins[part], ends[part]) for part in window.tolist()])
            shuffled = rng.permutation(samples)
            order[done : done + len(samples)] = shuffled if self.members is None else self.members[shuffled]
            done += len(samples)
        return order


@dataclass(frozen=True)
class StreamWindows:
    """The windows that a stream reads in one epoch, in order."""

    first_steps: NDArray[np.int64]
    """`(windows,)`, step of the epoch that reads the first sample of each."""
    last_steps: NDArray[np.int64]
    """`(windows,)`, step of the epoch that reads the last sample of each."""
    shards: list[NDArray[np.int64]]
    """Shard numbers of each window."""


class SampleOrder:
    """The samples of each global batch, and the windows of shards that hold them."""

    def __init__(
        self,
        seed: int,
        shard_sizes: NDArray[np.int64],
        batch_size: int,
        window_shards: int,
        groups: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        """Deal the shards to the groups.

        Args:
            seed: seed of the run.
            shard_sizes: `(shards,)`, number of samples in each shard.
            batch_size: number of samples in a global batch, a multiple of `groups`.
            window_shards: number of shards that are shuffled together, in all groups together.
            groups: number of groups.
            mixture: the classes that are mixed, or None to visit each sample once an epoch.
        """
        self.seed = seed
        self.batch_size = batch_size
        self.groups = groups
        self.window_shards = max(1, -(-window_shards // groups))
        self.mixture = mixture
        self.samples_per_group = batch_size // groups
        """Number of samples that a batch takes from each group."""
        self.steps_per_epoch = int(shard_sizes.sum()) // batch_size
        starts = np.concatenate([[0], np.cumsum(shard_sizes)])
        members = mixture.members() if mixture else [None]
        self.streams: dict[tuple[int, int], Stream] = {}
        """The stream of each group and class."""
        for number, own in enumerate(members):
            own_starts = starts if own is None else own.searchsorted(starts)
            for group, piece in enumerate(deal_shards(seed, own_starts, groups)):
                self.streams[group, number] = Stream(seed, (group, number), piece, self.window_shards, own)
        self._positions: dict[int, ClassPositions] = {}

    def share(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Compute the sample numbers `(batch_size / world_size,)` of a process at global step `step`, from 0.

        Only the order of the groups that the process reads is computed.
        """
        share = self.batch_size // world_size
        groups = self.groups_of(rank, world_size)
        begin = rank * share - groups.start * self.samples_per_group
        samples = np.concatenate([self._take(step, group) for group in groups])
        return samples[begin : begin + share]

    def groups_of(self, rank: int, world_size: int) -> range:
        """Return the groups from which a process reads at least a part."""
        share = self.batch_size // world_size
        return range(rank * share // self.samples_per_group, ((rank + 1) * share - 1) // self.samples_per_group + 1)

    def streams_of(self, groups: range) -> list[Stream]:
        """Return the streams of some groups."""
        return [stream for (group, _), stream in self.streams.items() if group in groups]

    def _take(self, step: int, group: int) -> NDArray[np.int64]:
        """Compute the samples `(samples_per_group,)` of a group at a global step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        count = self.samples_per_group
        if self.mixture is None:
            return self.streams[group, 0].take(epoch, step_in_epoch * count, count)
        positions = self.positions(epoch)
        classes = positions.classes[step_in_epoch, group * count : (group + 1) * count]
        samples = np.empty(count, dtype=np.int64)
        for number in range(self.mixture.num_classes):
            mine = classes == number
            start = int(positions.before(group, number)[step_in_epoch])
            samples[mine] = self.streams[group, number].take(epoch, start, int(mine.sum()))
        return samples

    def most_windows(self, stream: Stream, steps: int) -> int:
        """Return the largest number of windows of a stream that are needed at once if `steps` steps are read ahead."""
        smallest = np.cumsum(np.sort(stream.piece.sizes))[self.window_shards - 1 :: self.window_shards]
        # Besides the window of the first sample and the next one, these are the windows that all samples together pass.
        return 2 + int(smallest.searchsorted(steps * self.samples_per_group))

    def positions(self, epoch: int) -> ClassPositions:
        """Compute the class of each position of an epoch. The order must have a mixture."""
        assert self.mixture is not None
        if epoch not in self._positions:
            # The last two epochs are kept, because downloads run ahead into the next one.
            while len(self._positions) > 1:
                del self._positions[min(self._positions)]
            rng = make_generator(self.seed, epoch, POSITIONS)
            self._positions[epoch] = self.mixture.draw_positions(
                rng, self.steps_per_epoch, self.batch_size, self.groups
            )
        return self._positions[epoch]

    def windows(self, stream: Stream, epoch: int) -> StreamWindows:
        """Compute the windows that a stream reads in an epoch."""
        if self.mixture is None:
            per_step = self.samples_per_group
            return _find_windows(stream, epoch, per_step * self.steps_per_epoch, lambda places: places // per_step)
        before = self.positions(epoch).before(*stream.key)
        return _find_windows(stream, epoch, int(before[-1]), lambda places: before[1:].searchsorted(places, "right"))


def _find_windows(
    stream: Stream, epoch: int, consumed: int, step_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> StreamWindows:
    """Find the windows that an epoch reads from a stream.

    Args:
        stream: the stream.
        epoch: number of the epoch.
        consumed: number of samples that the epoch takes from the stream.
        step_of: function that computes the step at which the sample at each place `(places,)` of the stream is taken.
    """
    starts: list[int] = []
    windows: list[NDArray[np.int64]] = []
    # A single window is the same in all passes.
    span = max(1, consumed) if stream.has_one_window else stream.num_samples
    for number in range(-(-consumed // span)):
        start = number * stream.num_samples
        for window in stream.windows(epoch, number):
            if start < consumed:
                starts.append(start)
                windows.append(stream.piece.shards[window])
            start += int(stream.piece.sizes[window].sum())
    begins = np.array(starts, dtype=np.int64)
    ends = np.append(begins, consumed)[1:]
    return StreamWindows(step_of(begins), step_of(ends - 1), windows)
