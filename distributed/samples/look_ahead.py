"""Requests for the samples of later batches, if each sample is downloaded by its range of bytes."""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.shardset.shard_split import ShardSplit

# Half of these samples, at the default size, fill all requests that may be in flight several times.
AHEAD_BYTES = 64 * 2**20


def request_ahead(
    split: ShardSplit, batches: Iterable[NDArray[np.int64]], num_batches: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the sample numbers of batches, and request the samples of later batches before these are yielded.

    The samples that were requested and not yielded take up to `AHEAD_BYTES`, or up to 1 + `num_batches` batches if
    that is more. Half of them are requested in one call, so that neighbours in different batches share a download.

    Args:
        split: split that the batches are read from.
        batches: sample numbers `(N,)` of each batch, in the order in which the batches are read.
        num_batches: number of batches that are requested in advance, however large they are.
    """
    sample_bytes = 2 * int(np.prod(split.low_shape) + np.prod(split.high_shape))
    most = AHEAD_BYTES // sample_bytes
    ahead: deque[NDArray[np.int64]] = deque()
    num_ahead, later = 0, iter(batches)
    while True:
        if num_ahead <= most // 2:
            requested: list[NDArray[np.int64]] = []
            for batch in later:
                requested.append(batch)
                num_ahead += len(batch)
                most = max(most, (1 + num_batches) * len(batch))
                if num_ahead + len(batch) > most:
                    break
            if requested:
                split.request(np.concatenate([np.unique(batch) for batch in requested]))
            ahead.extend(requested)
        if not ahead:
            return
        num_ahead -= len(ahead[0])
        yield ahead.popleft()
