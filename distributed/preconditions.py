"""Checks before a run's first step, so that a wrong configuration costs seconds instead of hours."""

import contextlib
import json
from pathlib import Path

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, parse_flag_from_env

from upfield.common.errors import InputError
from upfield.common.places import recognise
from upfield.common.progress import say
from upfield.distributed.configuration import DataConfig, TrainConfig
from upfield.distributed.samples.splits import open_splits
from upfield.distributed.samples.webdataset_reader import refuse_unfit_streams
from upfield.model.kernels.selection import choose_kernels
from upfield.model.losses import LEAST_SIZES
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_split import ShardSplit

FIRST_WITH_BF16 = (8, 0)  # compute capability of Ampere


def refuse_unusable(config: TrainConfig, world_size: int) -> None:
    """Check everything that can be checked without reading a file.

    Args:
        config: configuration of the run.
        world_size: number of processes in the job.

    Raises:
        InputError: the batch cannot be divided evenly, the precision, the kernels or a tracker are unavailable, or the
            output folder holds something else than a run.
    """
    if (found := recognise(config.run.out)) and found.kind != "the folder of a run" and config.run.out.is_dir():
        raise InputError(f"{config.run.out} is {found.kind}. Choose another --run.out.")
    refuse_uneven_batch(config.data.batch_size, world_size)
    if config.run.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("run.precision: fp16 needs a GPU, but this machine has none. Choose bf16 or no.")
    try:
        choose_kernels(config.run.kernels, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except ValueError as error:
        raise InputError(f"run.{error}") from error
    refuse_trackers(config.run.trackers)


def warn_of_emulation(precision: str, device: torch.device) -> None:
    """Print a warning if a GPU emulates the precision, which is slow."""
    if device.type != "cuda" or precision != "bf16" or torch.version.hip is not None:
        return
    if torch.cuda.get_device_capability(device) < FIRST_WITH_BF16:
        say(
            f"run.precision: {torch.cuda.get_device_name(device)} has no hardware for bf16, so PyTorch emulates it, "
            "which is slow. Choose --run.precision fp16."
        )


def refuse_shared_gpus(processes: int) -> None:
    """Check that each process on this machine has a GPU of its own, if the machine has GPUs.

    Raises:
        InputError: there are more processes than GPUs.
    """
    gpus = torch.cuda.device_count()
    if 0 < gpus < processes and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise InputError(
            f"processes: expected at most {gpus}, the number of GPUs, found {processes}. "
            "Set ACCELERATE_USE_CPU=true to train on the CPU."
        )


def refuse_uneven_batch(batch_size: int, world_size: int) -> None:
    """Check that a global batch can be divided evenly among the processes.

    Raises:
        InputError: the batch size is not a multiple of the number of processes.
    """
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        near = sorted({below or world_size, below + world_size})
        raise InputError(
            f"data.batch_size: expected a multiple of {world_size}, the number of processes, found {batch_size}. "
            f"Choose {' or '.join(map(str, near))}."
        )


def refuse_trackers(names: list[str]) -> None:
    """Check that Accelerate knows the trackers and that their packages are installed.

    Raises:
        InputError: a tracker is unknown or not installed.
    """
    known = sorted(str(kind) for kind in LoggerType if kind != LoggerType.ALL)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"run.trackers: expected names from {', '.join(known)}, found {unknown[0]}.")
    available = {str(kind) for kind in get_available_trackers()}
    if missing := [name for name in names if name not in available]:
        raise InputError(f"run.trackers: {missing[0]} is not installed. Install its package with pip.")


def open_data(config: TrainConfig, world_size: int) -> tuple[ShardSplit, ShardSplit]:
    """Open the training and validation splits, and check that the configuration fits them.

    Args:
        config: configuration of the run.
        world_size: number of processes in the job.

    Raises:
        InputError: the shard set is missing, damaged or too small, or the configuration does not fit it.
        RunError: a remote store does not respond correctly.
    """
    split, validation = open_splits(config.data)
    refuse_too_small(config, split, validation)
    if config.data.reader == "webdataset":
        refuse_unfit_streams(config.data, split, world_size)
    if config.model.init is not None and not config.model.init.is_file():
        raise InputError(f"{config.model.init}: this weight file does not exist. Check --model.init.")
    return split, validation


def refuse_too_small(config: TrainConfig, split: ShardSplit, validation: ShardSplit) -> None:
    """Check that slices are large enough for the crop and the loss, and that both splits have enough samples.

    Raises:
        InputError: the slices or the splits are too small.
    """
    crop, (_, *size) = config.data.augment.crop, split.high_shape
    if crop and (crop[0] > size[0] or crop[1] > size[1]):
        raise InputError(
            f"data.augment.crop: expected at most {size[0]} x {size[1]}, the size of the slices, "
            f"found {crop[0]} x {crop[1]}."
        )
    height, width = crop or size
    for name, least in LEAST_SIZES.items():
        if getattr(config.loss, name) and min(height, width) < least:
            raise InputError(
                f"loss.{name}: expected slices or crops of at least {least} x {least}, found {height} x {width}. "
                "Set the weight to 0 or use larger crops."
            )
    if split.num_samples < config.data.batch_size:
        raise InputError(
            f"{split.root}: expected at least {config.data.batch_size} training samples (data.batch_size), "
            f"found {split.num_samples}. Choose a smaller --data.batch_size or add subjects."
        )
    if validation.num_samples == 0:
        raise InputError(
            f"{split.root}: the val split has no subjects, but the best model is chosen on it. "
            "Set `split: {val: N}` for a cohort and build the set again."
        )


def refuse_other_file(trace: Path) -> None:
    """Check that the trace would not overwrite a file of another kind.

    Raises:
        InputError: the file exists and is not a trace.
    """
    is_trace = False
    with contextlib.suppress(OSError, ValueError, TypeError):
        first = ""
        if trace.exists():
            with trace.open(encoding="utf-8") as file:
                first = file.readline()
        is_trace = not first or "keys" in json.loads(first)
    if not is_trace:
        raise InputError(f"{trace}: this file exists and is not a trace. Choose another --data.trace.")


def refuse_other_view(config: DataConfig, manifest: Manifest, main_data: str, checkpoint: Path | None) -> None:
    """Check that this process sees the same shard set and checkpoint as the main process.

    Args:
        config: part `data` of the configuration.
        manifest: manifest of the shard set that this process reads.
        main_data: data hash of the shard set that the main process reads.
        checkpoint: checkpoint from which the main process resumes, if any.

    Raises:
        InputError: the shard set differs, or this process cannot see the checkpoint.
    """
    if manifest.data_sha256 != main_data:
        raise InputError(
            f"{config.shards}: the shard set differs between nodes: its data hash is {main_data} on the first "
            f"node and {manifest.data_sha256} on another. Copy or build the set again."
        )
    if checkpoint and not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint}: the first node found this checkpoint, but another node cannot see it. "
            "Put run.out on storage that all nodes share."
        )
