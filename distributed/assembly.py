"""Put a run together: data, network, optimizer, and the place to go on from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from upfield.distributed.checkpoint import (
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
    network: Amir
    """Unwrapped."""
    wrapped: torch.nn.Module
    """What the step calls: the network under data parallelism and mixed precision."""
    optimizer: Optimizer
    progress: Progress
    total_steps: int
    out: Path


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
    sequencing = Sequencing(
        config.run.seed,
        config.data.batch_size,
        config.data.window_shards,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = TrainingBatches(split, sequencing)
    total_steps = min(config.run.epochs * batches.steps_per_epoch, config.run.max_steps or 2**62)
    network, optimizer = build_network(config, manifest, accelerator)
    progress = Progress(
        data_sha256=manifest.data_sha256,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        window_shards=config.data.window_shards,
    )
    if checkpoint:
        loaded = load_checkpoint(checkpoint, network, optimizer)
        refuse_other_order(checkpoint, loaded, progress)
        progress = loaded
        if read_best_step(out) != progress.best_step:
            # That model is gone, replaced by one this run has not reached: the next validation starts the comparison.
            progress.best_psnr = progress.best_step = None
    wrapped, prepared = accelerator.prepare(network, optimizer)
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
        config, accelerator, batches, inputs.validation, network, wrapped, prepared, progress, total_steps, out
    )


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
    economise(network, config, manifest, accelerator)
    if config.run.compile:
        network.compile_blocks()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optim.lr, betas=config.optim.betas)
    return network, optimizer


def economise(network: Amir, config: TrainConfig, manifest: Manifest, accelerator: Accelerator) -> None:
    """Use memory as the device wants it: a CPU keeps what it has, a GPU keeps no more for the gradient than fits."""
    checkpointing = config.run.activation_checkpointing
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if checkpointing == "auto":
        checkpointing = "none"  # On a CPU, memory is rarely what runs out first.
        if accelerator.device.type == "cuda":
            _, height, width = manifest.sample_shape("low")
            batch = config.data.batch_size // accelerator.num_processes
            value_bytes = 4 if config.run.precision == "no" else 2
            _, total_bytes = torch.cuda.mem_get_info(accelerator.device)
            checkpointing = choose_checkpointing(network.config, (height, width), batch, value_bytes, total_bytes)
    network.set_checkpointing(checkpointing)


def refuse_too_small(config: TrainConfig, split: ShardSplit, validation: ShardSplit) -> None:
    """Raise InputError where there is not a single training batch or nothing to validate on."""
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
