"""The sample order: a pure function of (seed, epoch), so that each position of each epoch is known in advance.

Therefore every rank takes the same number of steps, any number of processes trains on the same batches, and a run
resumes exactly from its step number.
"""

import numpy as np
from numpy.typing import NDArray


def epoch_order(seed: int, epoch: int, shard_sizes: NDArray[np.int64], window_shards: int) -> NDArray[np.int64]:
    """Compute the order in which an epoch visits all samples.

    First the shards are permuted, then the samples within each window of shards. If a window holds many subjects, the
    samples are mixed as well as by a full shuffle. A remote set can then be downloaded one window at a time.

    Args:
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        shard_sizes: `(shards,)`, number of samples in each shard.
        window_shards: number of shards in a window.

    Returns:
        `(samples,)` int64, a permutation of all sample numbers.
    """
    rng = np.random.default_rng((seed, epoch))
    starts = np.cumsum(shard_sizes) - shard_sizes
    windows = _windows(rng, len(shard_sizes), window_shards)
    return np.concatenate([rng.permutation(_samples(window, starts, shard_sizes)) for window in windows])


def epoch_windows(seed: int, epoch: int, num_shards: int, window_shards: int) -> list[NDArray[np.int64]]:
    """Compute the windows of `epoch_order`, in order: the shard numbers `(up to window_shards,)` of each."""
    return _windows(np.random.default_rng((seed, epoch)), num_shards, window_shards)


def _windows(rng: np.random.Generator, num_shards: int, window_shards: int) -> list[NDArray[np.int64]]:
    shards = rng.permutation(num_shards)
    return [shards[i : i + window_shards] for i in range(0, num_shards, window_shards)]


def _samples(shards: NDArray[np.int64], starts: NDArray[np.int64], shard_sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(int(starts[shard]), int(starts[shard] + shard_sizes[shard])) for shard in shards])


def rank_share(order: NDArray[np.int64], step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return one process's equal share of global batch `step` of an epoch.

    Args:
        order: `(samples,)`, sample numbers in the epoch's order.
        step: number of the batch in the epoch, from 0.
        batch_size: number of samples in a global batch, a multiple of `world_size`.
        rank: number of the process.
        world_size: number of processes.

    Returns:
        `(batch_size / world_size,)` sample numbers.
    """
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return order[start : start + share]
