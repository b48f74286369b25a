"""Put a run together: data, network, optimizer, and the place to go on from."""

import contextlib
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer

from upfield.common.allocator import keep_freed_memory
from upfield.common.command import to_yaml
from upfield.common.errors import InputError
from upfield.common.files import write_text
from upfield.common.progress import say
from upfield.distributed.agreement import (
    done_by_all,
    done_by_main_process,
    errors_met_by_all,
    hold_folder,
    sum_over_processes,
    write_on_main_process,
)
from upfield.distributed.average import WeightAverage
from upfield.distributed.checkpoint import (
    Learner,
    TrainingProgress,
    checkpoints_of,
    clear_leftovers,
    find_checkpoint,
    is_own,
    load_checkpoint,
    read_best_score,
    read_progress,
)
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.launch import asked_world_size, make_accelerator, refuse_trackers, refuse_uneven_batch
from upfield.distributed.samples.reader import BatchPlan, TrainingBatches
from upfield.distributed.samples.splits import open_splits
from upfield.model.activation_memory import choose_checkpointing
from upfield.model.amir import Amir
from upfield.model.configuration import Checkpointing
from upfield.model.losses import LEAST_SIZES
from upfield.model.weights import read_weights
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_split import ShardSplit

Figures = dict[str, float | int]
# Takes where the run stands, the epochs that are done, and what a validation found.
OnValidation = Callable[[TrainingProgress, float, Figures], None]


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
    progress: TrainingProgress
    total_steps: int
    out: Path
    lock: TextIO | None
    """Held while the run is written."""
    validated: OnValidation = lambda *_: None
    """Called after each validation."""

    @property
    def epoch(self) -> float:
        """How many passes over the training split are done."""
        return self.progress.step / self.batches.steps_per_epoch


@dataclass(frozen=True)
class Start:
    """Where a run starts from."""

    checkpoint: Path | None
    """The checkpoint to go on from, if any."""
    progress: TrainingProgress
    """Where it stood."""
    seen: tuple[str, ...]
    """Checkpoints that were there when it was found."""


def refuse_unusable(config: TrainConfig, world_size: int) -> None:
    """Refuse what can be refused without reading anything.

    Raises:
        InputError: a place is missing, the batch cannot be divided, precision or trackers cannot be had.
    """
    refuse_uneven_batch(config.data.batch_size, world_size)
    if config.run.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("run.precision: expected bf16 or no where there is no GPU, found fp16")
    refuse_trackers(config.run.trackers)


def open_data(config: TrainConfig) -> tuple[ShardSplit, ShardSplit]:
    """Open the training and validation split, and refuse what does not fit them.

    Raises:
        InputError: the shard set is missing, damaged or too small, or the configuration does not fit it.
        RunError: a remote store does not answer as it should.
    """
    split, validation = open_splits(config.data)
    refuse_too_small(config, split, validation)
    if config.model.init is not None and not config.model.init.is_file():
        raise InputError(f"{config.model.init}: expected a file of weights, found none; check --model.init")
    return split, validation


def find_start(config: TrainConfig, manifest: Manifest) -> Start:
    """Find where to go on from.

    Raises:
        InputError: the checkpoint is damaged or of another order of samples.
    """
    own = TrainingProgress(
        data_sha256=manifest.data_sha256,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        window_shards=config.data.window_shards,
    )
    seen = tuple(path.name for path in checkpoints_of(config.run.out))
    checkpoint = find_checkpoint(config.run.out, config.run.resume)
    if config.data.trace is not None:
        refuse_other_file(config.data.trace)
    if checkpoint is None:
        return Start(None, own, seen)
    progress = read_progress(checkpoint)
    refuse_other_order(checkpoint, progress, own)
    # What the best model says of itself: it may be later than the checkpoint, and is not given up for a lesser one.
    best = read_best_score(config.run.out) if is_own(config.run.out, checkpoint) else None
    progress.best_psnr, progress.best_step = best or (None, None)
    return Start(checkpoint, progress, seen)


def refuse_before_launch(config: TrainConfig) -> None:
    """Refuse what the processes to be launched would, before any of them is started.

    Raises:
        InputError: as the functions that it calls.
        RunError: likewise.
    """
    refuse_unusable(config, config.processes)
    find_start(config, open_data(config)[0].manifest)


def set_up(config: TrainConfig) -> Training:
    """Form the process group, build the network and go to where it left off. Collective: ALL ranks call it.

    Raises:
        InputError: the shard set, the configuration or a checkpoint does not fit.
        RunError: the processes do not see each other, or the run's folder cannot be written.
    """
    with errors_met_by_all(InputError):
        refuse_unusable(config, asked_world_size())
    out = config.run.out
    accelerator = make_accelerator(config, out)
    split, validation = done_by_all(lambda: open_data(config))
    manifest = split.manifest
    start = done_by_main_process(lambda: find_start(config, manifest))
    done_by_all(lambda: refuse_other_view(config, manifest, start.progress.data_sha256, start.checkpoint))
    lock = hold_folder(out)
    # Another job may have gone on until now.
    start = done_by_main_process(lambda: start if still_there(out, start) else find_start(config, manifest))
    plan = BatchPlan(
        config.run.seed,
        config.data.batch_size,
        config.data.window_shards,
        config.data.augment,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = TrainingBatches(split, plan)
    total_steps = min(config.run.epochs * batches.steps_per_epoch, config.run.max_steps or 2**62)
    network, optimizer = build_network(config, manifest, accelerator)
    # Before anything is loaded: what splits weights over processes makes new parameters of them.
    wrapped, prepared = accelerator.prepare(network, optimizer)
    decay = config.optim.ema_decay
    average = WeightAverage(network, decay) if decay is not None else None
    learner = Learner(network, prepared.optimizer, average, accelerator.scaler)
    if start.checkpoint:
        load_checkpoint(start.checkpoint, learner)
    if start.progress.step < total_steps:
        write_on_main_process(f"{out}: the configuration", lambda: prepare_folder(config, out, start))
    run = Training(
        config, accelerator, batches, validation, learner, wrapped, prepared, start.progress, total_steps, out, lock
    )
    announce(run)
    return run


def still_there(out: Path, start: Start) -> bool:
    """Tell whether the run has the checkpoints that it had when a start was found."""
    return tuple(path.name for path in checkpoints_of(out)) == start.seen


def prepare_folder(config: TrainConfig, out: Path, start: Start) -> None:
    """Clear the run's folder of what is not this run's and write its configuration. One rank calls it."""
    clear_leftovers(out, start.checkpoint, start.progress.step)
    write_text(out / "config.yaml", to_yaml(config))


def announce(run: Training) -> None:
    """Say on the main process what is going to be done."""
    if run.accelerator.is_main_process and run.progress.step >= run.total_steps:
        say(f"{run.out}: stands at step {run.progress.step} of {run.total_steps}; nothing is left to train")
    elif run.accelerator.is_main_process:
        step, count = run.progress.step, run.accelerator.num_processes
        where = f"from step {step}" if step else "from the beginning"
        say(
            f"training {where} to step {run.total_steps}: {run.batches.split.num_samples} samples, global batch "
            f"{run.config.data.batch_size}, {count} process{'es' if count > 1 else ''} on "
            f"{run.accelerator.device.type}, precision {run.config.run.precision}"
        )


def tear_down(run: Training) -> None:
    """Leave the process group; the run is of no more use then. Collective: ALL ranks call it."""
    # Data parallelism holds on to the group. Were it the last to, the group's end would wait for its threads with the
    # interpreter locked, which they may be waiting for in turn.
    run.accelerator.free_memory()
    del run.wrapped, run.optimizer
    gc.collect()
    run.accelerator.state.destroy_process_group()


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
        network.sum_usage = sum_over_processes  # Its gradient is the sum too, of which data parallelism takes the mean.
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
    height, width = crop or size
    for name, least in LEAST_SIZES.items():
        if getattr(config.loss, name) and min(height, width) < least:
            raise InputError(
                f"loss.{name}: expected slices or crops of at least {least} x {least}, found {height} x {width}; "
                "leave the weight at 0, or take larger crops"
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


def refuse_other_order(checkpoint: Path, found: TrainingProgress, asked: TrainingProgress) -> None:
    """Raise InputError where a checkpoint's steps were counted along another order of samples."""
    for name in ("data_sha256", "batch_size", "seed", "window_shards"):
        theirs, ours = getattr(found, name), getattr(asked, name)
        if theirs != ours:
            raise InputError(
                f"{checkpoint}: expected {name} {theirs} as it was trained with, found {ours}; its position "
                "is counted along that order. Start anew with another --run.out, or --model.init from its weights"
            )


def refuse_other_file(trace: Path) -> None:
    """Raise InputError where something else than a trace stands in the trace's place, which would be cut off."""
    is_trace = False
    with contextlib.suppress(OSError, ValueError, TypeError):
        first = ""
        if trace.exists():
            with trace.open(encoding="utf-8") as file:
                first = file.readline()
        is_trace = not first or "keys" in json.loads(first)
    if not is_trace:
        raise InputError(
            f"{trace}: expected a new file or an earlier trace, found another; choose another --data.trace"
        )


def refuse_other_view(config: TrainConfig, manifest: Manifest, main_data: str, checkpoint: Path | None) -> None:
    """Raise InputError where this process sees another set or run than the main process does."""
    if manifest.data_sha256 != main_data:
        raise InputError(
            f"{config.data.shards}: expected the same shard set on every node, found data {manifest.data_sha256} on "
            f"one and {main_data} on the first; build or copy it anew"
        )
    if checkpoint and not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint}: expected the checkpoint that the first node found, found none on another; put run.out on "
            "storage that all nodes share"
        )
