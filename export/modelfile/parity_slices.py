"""The validation slices on which a model file is compared with PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import FetchError, InputError, ShardSetError
from upfield.export.configuration import ExportConfig
from upfield.model.weights import BestModel
from upfield.sharding.shardset.remote.remote_files import FETCH_REMEDY
from upfield.sharding.shardset.shard_set import ShardSet, open_set
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import find_neighbours

NUM_SLICES = 4


@dataclass(frozen=True)
class SlicePairs:
    """Low-field slices and their high-field targets."""

    low: NDArray[np.float32]
    """`(N, 1 + 2*context, H, W)` in [0, 1]."""
    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""


def open_parity_set(config: ExportConfig, best: BestModel) -> ShardSet:
    """Open the shard set that the user named, or the one that the run was trained on.

    Raises:
        InputError: there is no complete set, or the run does not name one.
        FetchError: the set is remote and cannot be downloaded.
    """
    if config.shards is not None:
        return open_set(config.shards, config)
    shards = training_shards(best.config, config.run)
    try:
        return open_set(shards, config)
    except ShardSetError as error:
        hint = "The run was trained on this shard set: if it has moved, name it with --shards."
        raise ShardSetError(f"{error} {hint}") from error
    except FetchError as error:
        problem = str(error).removesuffix(FETCH_REMEDY)
        raise type(error)(f"{problem} Check the connection, or name a copy of the shard set with --shards.") from error


def training_shards(training: dict[str, Any], run: Path) -> str:
    """Return the folder or address of the shard set that a run was trained on.

    Args:
        training: the run's training configuration.
        run: folder of the run, for error messages.

    Raises:
        InputError: the configuration does not name a shard set.
    """
    try:
        return str(training["data"]["shards"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{run}: its configuration has no data.shards. Name the shard set with --shards.") from error


def training_geometry(best: BestModel, shards: ShardSet, run: Path) -> dict[str, Any]:
    """Return the grids of the shard set that a run was trained on.

    Runs of older versions do not record them. They are then read from the shard set, if it is the one that the run was
    trained on.

    Raises:
        InputError: neither the run nor the shard set can tell.
    """
    if best.geometry is not None:
        return best.geometry
    if shards.manifest.data_sha256 != best.data_sha256:
        raise InputError(
            f"{run} does not record the grids of its training data, and {shards.name} is not the shard set that it was "
            "trained on. Name that set with --shards."
        )
    return shards.manifest.geometry


def read_parity_slices(shards: ShardSet, context: int) -> SlicePairs:
    """Read a few validation slices with their targets, spread over the inner half of the head.

    Args:
        shards: the shard set.
        context: neighbouring slices that the model takes on each side.

    Raises:
        InputError: the shard set has no validation slices.
        FetchError: a shard could not be downloaded.
    """
    split = shards.split("val")
    samples = find_neighbours(split, choose_samples(split), context)
    low = np.empty((samples.size, *split.low_shape), dtype=np.float16)
    high = np.empty((samples.size, *split.high_shape), dtype=np.float16)
    split.read_into(samples.ravel(), low, high)
    # The set may store another number of neighbours than the model takes, so only the centre slices are used.
    low, high = (
        images[:, images.shape[1] // 2].reshape(*samples.shape, *images.shape[2:]).astype(np.float32)
        for images in (low, high)
    )
    return SlicePairs(low, high[:, context : context + 1])


def choose_samples(split: ShardSplit) -> list[int]:
    """Choose samples that show anatomy, evenly between the first and the third quarter of the sorted slice numbers.

    Samples of real pairs are preferred if the split has any.

    Raises:
        InputError: the split is empty.
    """
    if not split.num_samples:
        raise InputError(f"{split.root} has no validation slices. Name another shard set with --shards.")
    is_real = np.array([kind == "real" for _, _, kind, _ in split.units])[split.unit_numbers]
    numbers = np.flatnonzero(is_real if is_real.any() else ~is_real)
    ordered = numbers[np.argsort(split.index.slices[numbers], kind="stable")].tolist()
    return [ordered[int(place)] for place in np.linspace(0.25, 0.75, NUM_SLICES) * (len(ordered) - 1)]
