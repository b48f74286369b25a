"""Streams of samples through the webdataset library: its list of shards, its tar reader and its shuffle buffer.

The shards are opened by this module and not by the library, whose own functions would run commands: `curl`, `gsutil`,
or anything after `pipe:`. A remote shard is downloaded into the node's cache as for the exact reader. Therefore its
samples are used only after the whole shard has arrived and its sha256 is that of the manifest.
"""

import io
import itertools
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError, ShardSetError
from upfield.sharding.shardset.remote.remote_files import RemoteFiles
from upfield.sharding.shardset.shard_files import LocalFiles
from upfield.sharding.shardset.shard_index import LABELS, MEMBERS
from upfield.sharding.shardset.shard_split import ShardSplit

# A sample as it passes through the library's stages: names to values.
Item = dict[str, Any]
NUMBER = "number"


@dataclass(frozen=True)
class StreamPlace:
    """Which of the job's streams this is. Each thread of each process reads one stream."""

    rank: int
    """Rank of the process."""
    world_size: int
    """Number of processes."""
    thread: int
    """Number of the thread in the process."""
    num_threads: int
    """Number of threads of each process."""


@dataclass(frozen=True)
class StreamSeed:
    """What the order of the streams depends on, besides the number of processes and threads."""

    seed: int
    """The run's seed."""
    epoch: int
    """Number of the epoch, from 0."""
    first_step: int
    """Step of the epoch at which the streams begin: 0, unless the run was resumed in this epoch."""

    def of_shards(self) -> int:
        """Return the seed that shuffles the shards. It is the same for all streams, which then divide the shards."""
        return _to_seed(self.seed, self.epoch, self.first_step)

    def of_buffer(self, place: StreamPlace) -> int:
        """Return the seed of a stream's buffer."""
        return _to_seed(self.seed, self.epoch, self.first_step, 1 + place.rank, place.thread)


def shuffle_shards(num_shards: int, seed: StreamSeed) -> NDArray[np.int64]:
    """Return the shards `(num_shards,)` in the order in which the streams of an epoch divide them."""
    from webdataset.shardlists import SimpleShardList

    names = SimpleShardList([str(number) for number in range(num_shards)], seed=seed.of_shards())
    return np.array([int(item["url"]) for item in names], dtype=np.int64)


def stream_samples(
    split: ShardSplit, seed: StreamSeed, place: StreamPlace, num_samples: int, buffer_size: int
) -> Iterator[Item]:
    """Yield the samples of one stream. A stream that has too few samples begins its shards again.

    Args:
        split: split to read.
        seed: seed of the order.
        place: which stream this is.
        num_samples: number of samples to yield.
        buffer_size: number of samples in the shuffle buffer.

    Yields:
        The sample's number in the split and its members: `number`, `low.npy` and `high.npy`.

    Raises:
        ShardSetError: a shard is missing, or does not hold the samples of its index.
        FetchError: a remote shard could not be fetched.
    """
    from webdataset.filters import shuffle
    from webdataset.pipeline import DataPipeline
    from webdataset.shardlists import SimpleShardList, split_by_node
    from webdataset.utils import pytorch_worker_info

    assert pytorch_worker_info()[:2] == (place.rank, place.world_size)  # what `split_by_node` goes by
    shards = {entry.name: number for number, entry in enumerate(split.entries)}

    def split_by_thread(items: Iterable[Item]) -> Iterator[Item]:
        # `wds.split_by_worker` does the same for the processes of a torch DataLoader. For threads it would do nothing,
        # or obey variables WORKER and NUM_WORKERS that happen to be set.
        return itertools.islice(items, place.thread, None, place.num_threads)

    pipeline = DataPipeline(
        SimpleShardList(list(shards), seed=seed.of_shards()),
        split_by_node,
        split_by_thread,
        lambda items: _open_shards(items, split, shards),
        lambda items: _read_members(items, split),
        lambda items: _number_samples(items, split, shards),
        shuffle(buffer_size, seed=seed.of_buffer(place)),
    )
    return iter(pipeline.with_epoch(nsamples=num_samples))


def decode_sample(item: Item, split: ShardSplit) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Decode the arrays of a sample.

    Args:
        item: sample of `stream_samples`.
        split: split to which it belongs.

    Returns:
        Low field `(1 + 2*context, H, W)` and high field `(1, H, W)`, in [0, 1].

    Raises:
        ShardSetError: a member is not an array of the type and shape in the manifest.
    """
    low, high = (_decode(item, split, member) for member in ("low", "high"))
    return low, high


def _decode(item: Item, split: ShardSplit, member: str) -> NDArray[np.float16]:
    shape = split.manifest.sample_shape(member)
    try:
        array = np.lib.format.read_array(io.BytesIO(item[f"{member}.npy"]), allow_pickle=False)
    except ValueError as error:
        raise _damaged(split, f"{split.key(item[NUMBER])}.{member}.npy cannot be read ({error})") from error
    if array.dtype != np.float16 or array.shape != shape:
        found = f"{array.dtype} of shape {array.shape}"
        raise _damaged(split, f"expected {split.key(item[NUMBER])}.{member}.npy as float16 of {shape}, found {found}")
    return array


def _open_shards(items: Iterable[Item], split: ShardSplit, shards: dict[str, int]) -> Iterator[Item]:
    """Open each shard, and meanwhile download the next one."""
    pool = ThreadPoolExecutor(1, "shard")
    ahead: deque[tuple[str, Future[BinaryIO]]] = deque()

    def take() -> Iterator[Item]:
        name, future = ahead.popleft()
        with future.result() as stream:
            yield {"url": name, "stream": stream}

    try:
        for item in items:
            name = item["url"]
            ahead.append((name, pool.submit(_open_shard, split, shards[name])))
            if len(ahead) > 1:
                yield from take()
        while ahead:
            yield from take()
    finally:
        # A stream may end before its shards do. A download that has begun continues into the cache.
        pool.shutdown(wait=False, cancel_futures=True)
        for _, future in ahead:
            future.add_done_callback(_close)


def _open_shard(split: ShardSplit, shard: int) -> BinaryIO:
    entry = split.entries[shard]
    assert isinstance(split.source, LocalFiles | RemoteFiles)
    stream = os.fdopen(split.source.open(entry), "rb")
    stream.seek(0, io.SEEK_END)
    if (num_bytes := stream.tell()) != entry.bytes:
        stream.close()
        raise _damaged(split, f"expected {entry.name}.tar of {entry.bytes} bytes, found {num_bytes}")
    stream.seek(0)
    return stream


def _close(future: "Future[BinaryIO]") -> None:
    with suppress(Exception):
        if not future.cancelled():
            future.result().close()


def _read_members(items: Iterable[Item], split: ShardSplit) -> Iterator[Item]:
    """Read the members of each sample from the tars."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        yield from group_by_keys(tar_file_expander(items))
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(split, f"{error.args[-1]}.tar cannot be read ({error.args[0]})") from error


def _number_samples(items: Iterable[Item], split: ShardSplit, shards: dict[str, int]) -> Iterator[Item]:
    """Number the samples of each shard, and check that their keys and members are those of the index."""
    for name, samples in itertools.groupby(items, key=lambda item: item["__url__"]):
        start, end = split.shard_starts[shards[name]], split.shard_starts[shards[name] + 1]
        number = int(start)
        for item in samples:
            if number >= end or item["__key__"] != split.key(number):
                raise _damaged(split, f"{name}.tar has a sample {item['__key__']} that its index does not list there")
            members = {member for member in item if not member.startswith("__")} - {LABELS}
            if members != set(MEMBERS):
                expected, found = ", ".join(sorted(MEMBERS)), ", ".join(sorted(members))
                raise _damaged(split, f"{name}.tar: expected the members {expected}, found {found}")
            yield {NUMBER: number, "low.npy": item["low.npy"], "high.npy": item["high.npy"]}
            number += 1
        if number != end:
            raise _damaged(split, f"expected {end - start} samples in {name}.tar, found {number - start}")


def _damaged(split: ShardSplit, problem: str) -> ShardSetError:
    return ShardSetError(f"{split.root}: {problem}, so a shard is damaged. Run upfield verify.")


def _to_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
