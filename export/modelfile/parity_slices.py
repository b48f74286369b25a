"""The validation slices on which a model file is compared with PyTorch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError, ShardSetError
from upfield.model.weights import BestModel
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_units import sample_units
from upfield.sharding.shardset.shard_split import ShardSplit

NUM_SLICES = 4


@dataclass(frozen=True)
class SlicePairs:
    """Low-field slices and their high-field targets."""

    low: NDArray[np.float32]
    """`(N, 1 + 2*context, H, W)` in [0, 1]."""
    high: NDArray[np.float32]
    """`(N, 1, H, W)` in [0, 1]."""


def training_shards(training: dict[str, Any], run: Path) -> Path:
    """Return the shard set that a run was trained on.

    Args:
        training: the run's training configuration.
        run: folder of the run, for error messages.

    Raises:
        InputError: the configuration does not name a shard set, or names a remote one.
    """
    try:
        shards = str(training["data"]["shards"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{run}: its configuration has no data.shards. Name the shard set with --shards.") from error
    if "://" in shards:
        raise InputError(f"{run} was trained on {shards}, which is remote. Name a local copy with --shards.")
    return Path(shards)


def training_geometry(best: BestModel, shards: Path, run: Path) -> dict[str, Any]:
    """Return the grids of the shard set that a run was trained on.

    Runs of older versions do not record them. They are then read from the shard set, if it is the one that the run was
    trained on.

    Raises:
        InputError: neither the run nor the shard set can tell.
    """
    if best.geometry is not None:
        return best.geometry
    manifest = read_manifest(shards)
    if manifest.data_sha256 != best.data_sha256:
        raise InputError(
            f"{run} does not record the grids of its training data, and {shards} is not the shard set that it was "
            "trained on. Name that set with --shards."
        )
    return manifest.geometry


def read_parity_slices(shards: Path, context: int, is_recorded: bool) -> SlicePairs:
    """Read a few validation slices with their targets, spread over the inner half of the head.

    Args:
        shards: the shard set.
        context: neighbouring slices that the model takes on each side.
        is_recorded: whether the path of the shard set is from the run's configuration, not from the user.

    Raises:
        InputError: the shard set is missing, has no validation slices, or has another context.
    """
    try:
        split = ShardSplit(shards, "val")
    except ShardSetError as error:
        hint = " The run was trained on this shard set: if it has moved, name it with --shards." if is_recorded else ""
        raise ShardSetError(f"{error}{hint}") from error
    if split.manifest.context != context:
        raise InputError(
            f"{shards}: expected the model's context {context}, found {split.manifest.context}. Name another shard set "
            "with --shards."
        )
    samples = choose_samples(split)
    low = np.empty((len(samples), *split.low_shape), dtype=np.float16)
    high = np.empty((len(samples), *split.high_shape), dtype=np.float16)
    split.read_into(samples, low, high)
    return SlicePairs(low.astype(np.float32), high.astype(np.float32))


def choose_samples(split: ShardSplit) -> list[int]:
    """Choose samples that show anatomy, evenly between the first and the third quarter of the sorted slice numbers.

    Samples of real pairs are preferred if the split has any.

    Raises:
        InputError: the split is empty.
    """
    if not split.num_samples:
        raise InputError(f"{split.root} has no validation slices. Name another shard set with --shards.")
    units = sample_units(split)
    is_real = np.array([unit.kind == "real" for unit in units.units])[units.numbers]
    numbers = np.flatnonzero(is_real if is_real.any() else ~is_real)
    ordered = numbers[np.argsort(split.index.slices[numbers], kind="stable")].tolist()
    return [ordered[int(place)] for place in np.linspace(0.25, 0.75, NUM_SLICES) * (len(ordered) - 1)]
