"""What each library does on one node: it opens a remote set, and reads epoch after epoch.

Every function yields the epochs as iterators of pairs of float16 tensors `(N, *SHAPE)`, low and high.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from reader import BATCHES_AHEAD, OURS, stand_in_for_torchvision, worker_options

Epoch = Iterable[tuple[Any, Any]]
# More than any set here, so that nothing is evicted.
AMPLE_BYTES = 30_000_000_000


@dataclass(frozen=True)
class Reading:
    """How the nodes read."""

    reader: str
    """Name of the reader in `READERS`."""
    nodes: int
    """Number of nodes, each with one process."""
    address: str
    """Address of the set."""
    endpoint: str = ""
    """URL of the S3 server."""
    batch_size: int = 64
    """Number of samples in a global batch."""
    workers: int = 0
    """Number of threads or processes per node that read in advance."""
    epochs: int = 2
    """Number of epochs."""
    fetch: str = "shards"
    """Value of upfield's `data.fetch`."""
    groups: int | None = None
    """Value of upfield's `data.groups`; by default, upfield chooses it."""
    cache_bytes: int = AMPLE_BYTES
    """Limit of a node's cache. With 0, upfield's cache has the least size that it accepts."""
    one_by_one: bool = False
    """Whether upfield ends each epoch before it downloads anything for the next one, so that bytes belong to epochs."""
    tuning: str = ""
    """Settings of a library beside its defaults, in the syntax of Python's keyword arguments."""

    @property
    def share(self) -> int:
        """Number of samples of a global batch on each node."""
        return self.batch_size // self.nodes

    @property
    def keywords(self) -> dict[str, Any]:
        """The settings of `tuning`."""
        return eval(f"dict({self.tuning})")


def read_upfield(reading: Reading, rank: int, cache: Path) -> Iterator[Epoch]:
    """Read as `upfield train` does."""
    from upfield.distributed.configuration import AugmentConfig, DataConfig
    from upfield.distributed.samples.fetcher import fetch_ahead
    from upfield.distributed.samples.groups import default_groups
    from upfield.distributed.samples.reader import BatchPlan, TrainingBatches, training_loader
    from upfield.distributed.samples.splits import open_splits

    os.environ["AWS_ENDPOINT_URL"] = reading.endpoint
    data = DataConfig(
        reading.address,
        reading.batch_size,
        num_workers=reading.workers,
        groups=reading.groups,
        fetch=reading.fetch,
        cache_dir=cache,
        cache_bytes=reading.cache_bytes or 1,
    )
    data = data if reading.cache_bytes else replace(data, cache_bytes=least_cache_bytes(data))
    order = (0, reading.batch_size, data.window_shards, AugmentConfig())
    plan = BatchPlan(*order, rank, reading.nodes, default_groups(data, is_remote=True))

    def open_batches() -> TrainingBatches:
        return TrainingBatches(open_splits(data)[0], plan)

    def read(batches: TrainingBatches, steps: range) -> Iterator[tuple[Any, Any]]:
        loader = training_loader(batches, steps, reading.workers, BATCHES_AHEAD, pin_memory=False)
        ahead = fetch_ahead(loader, batches, steps, reading.workers * BATCHES_AHEAD)
        return ((batch.low, batch.high) for batch in ahead)

    batches = open_batches()
    per_epoch = batches.steps_per_epoch
    ready = read(batches, range(per_epoch * reading.epochs))
    for epoch in range(reading.epochs):
        if reading.one_by_one:
            ready = read(open_batches() if epoch else batches, range(epoch * per_epoch, (epoch + 1) * per_epoch))
        yield islice(ready, per_epoch) if not reading.one_by_one else ready


def least_cache_bytes(data: Any) -> int:
    """Return the smallest size of the cache that upfield accepts."""
    from upfield.common.errors import InputError
    from upfield.distributed.samples.splits import open_splits

    try:
        open_splits(data)
    except InputError as error:
        return int(re.findall(r"at least (\d+)", str(error))[0])
    return data.cache_bytes


def read_mosaicml(reading: Reading, rank: int, cache: Path) -> Iterator[Epoch]:
    """Read MDS shards with the default shuffle `py1e`, which downloads each shard on one node."""
    stand_in_for_torchvision()
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = reading.endpoint
    options: dict[str, Any] = {"batch_size": reading.share, "shuffle": True} | reading.keywords
    dataset = StreamingDataset(remote=reading.address, local=str(cache), **options)
    options = worker_options(reading.workers)
    loader = DataLoader(dataset, batch_size=reading.share, num_workers=reading.workers, **options)
    while True:
        yield ((batch["low"], batch["high"]) for batch in loader)


def read_litdata(reading: Reading, rank: int, cache: Path) -> Iterator[Epoch]:
    """Read LitData's chunks, shuffled."""
    import litdata
    from litdata.streaming import downloader

    # LitData's S3 client refuses servers without TLS, and has no setting for that.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    options: dict[str, Any] = {"shuffle": True, "max_cache_size": AMPLE_BYTES} | reading.keywords
    options["storage_options"] = {"endpoint_url": reading.endpoint}
    dataset = litdata.StreamingDataset(reading.address, cache_dir=str(cache), **options)
    options = worker_options(reading.workers)
    loader = litdata.StreamingDataLoader(dataset, batch_size=reading.share, num_workers=reading.workers, **options)
    while True:
        yield ((batch["low"], batch["high"]) for batch in loader)


MOSAICML, LITDATA = "MosaicML Streaming", "LitData"
READERS: dict[str, Callable[[Reading, int, Path], Iterator[Epoch]]] = {
    OURS: read_upfield,
    MOSAICML: read_mosaicml,
    LITDATA: read_litdata,
}


def import_library(name: str) -> None:
    """Import what a reader needs, so that all nodes share it after a fork."""
    import numpy  # noqa: F401
    import torch

    torch.set_num_threads(1)
    if name == OURS:
        import upfield.distributed.samples.fetcher
        import upfield.distributed.samples.splits  # noqa: F401
    elif name == MOSAICML:
        stand_in_for_torchvision()
        import streaming  # noqa: F401
    else:
        import litdata  # noqa: F401
