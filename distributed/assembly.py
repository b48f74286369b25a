"""Put a run together: data, network, optimizer, and the place to go on from."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.distributed.nn.functional import all_reduce
from torch.optim import Optimizer

from upfield.distributed.agreement import hold_folder
from upfield.distributed.average import WeightAverage
from upfield.distributed.checkpoint import (
    Learner,
    Progress,
    clear_leftovers,
    find_checkpoint,
    load_checkpoint,
    read_best_step,
)
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.launch import make_accelerator
from upfield.distributed.reader import Sequencing, TrainingBatches
from upfield.distributed.source import open_splits
from upfield.model.amir import Amir
from upfield.model.configuration import Checkpointing
from upfield.model.memory import choose_checkpointing, keep_freed_memory
from upfield.model.weights import read_weights
from upfield.sharding.atomic import write_text
from upfield.sharding.command import to_yaml
from upfield.sharding.errors import InputError
from upfield.sharding.manifest import Manifest
from upfield.sharding.progress import say
from upfield.sharding.shardset import ShardSplit


@dataclass
class Training:
    """What lives through a run."""

    config: TrainConfig
    accelerator: Accelerator
    batches: TrainingBatches
    validation: ShardSplit
    learner: Learner
    wrapped: torch.nn.Module
    """What the step calls: the network under data parallelism and mixed precision."""
    optimizer: AcceleratedOptimizer
    """What steps: the learner's, under loss scaling."""
    progress: Progress
    total_steps: int
    out: Path
    lock: TextIO | None
    """Held while the run is written."""


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, opened and found fit."""

    split: ShardSplit
    """Training samples."""
    validation: ShardSplit
    """Validation samples."""
    checkpoint: Path | None
    """The checkpoint to go on from, if any."""


def open_inputs(config: TrainConfig) -> Inputs:
    """Open the shard set and find the checkpoint: all that can be refused before a process group is formed.

    Raises:
        InputError: the shard set, the configuration or a checkpoint does not fit.
    """
    if config.data.shards is None or config.run.out is None:
        missing = "data.shards" if config.data.shards is None else "run.out"
        raise InputError(f"expected --{missing}, found none; give it, or its key in the configuration")
    split, validation = open_splits(config.data)
    refuse_too_small(config, split, validation)
    if config.model.init is not None and not config.model.init.is_file():
        raise InputError(f"{config.model.init}: expected a file of weights, found none; check --model.init")
    return Inputs(split, validation, find_checkpoint(config.run.out, config.run.resume))


def set_up(config: TrainConfig) -> Training:
    """Form the process group, build the network and go to where it left off. Collective: ALL ranks call it.

    Raises:
        InputError: the shard set, the configuration or a checkpoint does not fit.
    """
    inputs = open_inputs(config)
    split, checkpoint, manifest = inputs.split, inputs.checkpoint, inputs.split.manifest
    assert config.run.out is not None
    out = config.run.out
    accelerator = make_accelerator(config, out)
    lock = hold_folder(out)
    sequencing = Sequencing(
        config.run.seed,
        config.data.batch_size,
        config.data.window_shards,
        config.data.augment,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = TrainingBatches(split, sequencing)
    total_steps = min(config.run.epochs * batches.steps_per_epoch, config.run.max_steps or 2**62)
    network, optimizer = build_network(config, manifest, accelerator)
    # Before anything is loaded: what splits weights over processes makes new parameters of them.
    wrapped, prepared = accelerator.prepare(network, optimizer)
    decay = config.optim.ema_decay
    average = WeightAverage(network, decay) if decay is not None else None
    learner = Learner(network, prepared.optimizer, average, accelerator.scaler)
    progress = Progress(
        data_sha256=manifest.data_sha256,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        window_shards=config.data.window_shards,
    )
    if checkpoint:
        loaded = load_checkpoint(checkpoint, learner)
        refuse_other_order(checkpoint, loaded, progress)
        progress = loaded
        if read_best_step(out) != progress.best_step:
            # That model is gone, replaced by one this run has not reached: the next validation starts the comparison.
            progress.best_psnr = progress.best_step = None
    if accelerator.is_main_process:
        clear_leftovers(out, checkpoint)
        write_text(out / "config.yaml", to_yaml(config))
        where = f"from step {progress.step}" if checkpoint else "from the beginning"
        processes = f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''}"
        say(
            f"training {where} to step {total_steps}: {split.num_samples} samples, global batch "
            f"{config.data.batch_size}, {processes} on {accelerator.device.type}, precision {config.run.precision}"
        )
    return Training(
        config, accelerator, batches, inputs.validation, learner, wrapped, prepared, progress, total_steps, out, lock
    )


def tear_down(run: Training) -> None:
    """Leave the process group; the run is of no more use then. Collective: ALL ranks call it."""
    # Data parallelism holds on to the group. Were it the last to, the group's end would wait for its threads with the
    # interpreter locked, which they may be waiting for in turn.
    run.accelerator.free_memory()
    del run.wrapped, run.optimizer
    gc.collect()
    run.accelerator.state.destroy_process_group()
    if run.lock is not None:
        run.lock.close()


def build_network(config: TrainConfig, manifest: Manifest, accelerator: Accelerator) -> tuple[Amir, Optimizer]:
    """Make the network, the same on every rank, and its optimizer."""
    torch.manual_seed(config.run.seed)
    network = Amir(config.model.amir(manifest.context)).train()
    if config.model.init is not None:
        try:
            network.load_state_dict(read_weights(config.model.init), strict=True)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{config.model.init}: expected weights that fit the configured model: {error}") from error
    network.to(accelerator.device)
    gpu_bytes = None
    if accelerator.device.type == "cuda":
        gpu_bytes, _ = torch.cuda.mem_get_info(accelerator.device)
    else:
        keep_freed_memory()
    network.set_checkpointing(wanted_checkpointing(config, manifest, accelerator.num_processes, gpu_bytes))
    if config.run.compile:
        network.compile_blocks()
    if accelerator.num_processes > 1:
        network.sum_usage = all_reduce  # Its gradient is the sum too, of which data parallelism takes the mean.
    # Fused: one pass over weights and averages where each operation had its own.
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optim.lr, betas=config.optim.betas, fused=True)
    return network, optimizer


def wanted_checkpointing(
    config: TrainConfig, manifest: Manifest, world_size: int, gpu_bytes: int | None
) -> Checkpointing:
    """Give the activation checkpointing that is asked for, or that fits the GPU's memory.

    Args:
        config: the run's.
        manifest: of the shard set.
        world_size: number of processes.
        gpu_bytes: free memory of the GPU; None on a CPU, where memory is rarely what runs out first.
    """
    if config.run.activation_checkpointing != "auto":
        return config.run.activation_checkpointing
    if gpu_bytes is None:
        return "none"
    _, height, width = manifest.sample_shape("low")
    size = config.data.augment.crop or (height, width)
    batch = config.data.micro_batch or config.data.batch_size // world_size
    value_bytes = 4 if config.run.precision == "no" else 2
    return choose_checkpointing(config.model.amir(manifest.context), size, batch, value_bytes, gpu_bytes)


def refuse_too_small(config: TrainConfig, split: ShardSplit, validation: ShardSplit) -> None:
    """Raise InputError where there is not a single training batch or nothing to validate on."""
    crop, (_, *size) = config.data.augment.crop, split.high_shape
    if crop and (crop[0] > size[0] or crop[1] > size[1]):
        raise InputError(
            f"data.augment.crop: expected at most the slices' {size[0]} x {size[1]}, found {crop[0]} x {crop[1]}"
        )
    if split.num_samples < config.data.batch_size:
        raise InputError(
            f"{split.root}: expected at least data.batch_size ({config.data.batch_size}) training samples, "
            f"found {split.num_samples}"
        )
    if validation.num_samples == 0:
        raise InputError(
            f"{split.root}: expected subjects in the val split, found none; the best model is chosen on them: "
            "give a cohort `split: {val: N}` and build the set again"
        )


def refuse_other_order(checkpoint: Path, found: Progress, asked: Progress) -> None:
    """Raise InputError where a checkpoint's steps were counted along another order of samples."""
    for name in ("data_sha256", "batch_size", "seed", "window_shards"):
        theirs, ours = getattr(found, name), getattr(asked, name)
        if theirs != ours:
            raise InputError(
                f"{checkpoint}: expected {name} {theirs} as it was trained with, found {ours}; its position "
                "is counted along that order. Start anew with another --run.out, or --model.init from its weights"
            )
