"""A training run: its state in memory, and the functions that open and close it."""

import gc
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from upfield.common.addresses import is_remote
from upfield.common.command import to_tree, to_yaml
from upfield.common.cores import chosen_threads, most_threads, num_threads
from upfield.common.environment.settling import recorded_environment, refuse_environment, settle_environment
from upfield.common.errors import InputError, RunError
from upfield.common.files import write_text
from upfield.common.grammar.yaml_files import read_yaml
from upfield.common.locking import FolderLock
from upfield.common.progress import say
from upfield.distributed.agreement import (
    errors_met_by_all,
    hold_folder,
    run_on_all_processes,
    run_on_main_process,
    write_on_main_process,
)
from upfield.distributed.checkpoint import ResumePoint, TrainingProgress, clear_leftovers, find_resume_point
from upfield.distributed.configuration import RunSettings, TrainConfig
from upfield.distributed.learner import Learner, build_network, build_optimizer, choose_memory_plan, free_gpu_bytes
from upfield.distributed.logs.printed_lines import setting
from upfield.distributed.preconditions import (
    open_data,
    refuse_other_file,
    refuse_other_view,
    refuse_unusable,
    warn_of_emulation,
)
from upfield.distributed.process_group import expected_world_size, make_accelerator
from upfield.distributed.samples.groups import default_groups
from upfield.distributed.samples.reader import BatchPlan
from upfield.distributed.samples.sources import Batches, describe_batches, plan_batches
from upfield.distributed.weight_average import WeightAverage
from upfield.model.activation_memory import MemoryPlan
from upfield.model.configuration import Checkpointing
from upfield.model.numerics import use_exact_float32
from upfield.model.weights import CONFIG
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_split import ShardSplit

# Settings that say where the files of a run are and how it is started.
PLACES = ("run.out", "run.resume", "data.shards", "data.cache_dir", "data.trace", "model.init", "processes")
Figures = dict[str, float | int]
# Arguments: the progress, the number of epochs done, and the figures of a validation.
OnValidation = Callable[[TrainingProgress, float, Figures], None]


@dataclass
class TrainingRun:
    """The objects that exist as long as a run is open."""

    config: TrainConfig
    accelerator: Accelerator
    batches: Batches
    validation: ShardSplit
    learner: Learner
    wrapped: torch.nn.Module
    """The network, wrapped for data parallelism and mixed precision. Each step calls this wrapper."""
    progress: TrainingProgress
    total_steps: int
    out: Path
    lock: FolderLock | None
    """Lock on the run's folder on the main process, None elsewhere."""
    on_validation: OnValidation = lambda *_: None
    """Function that is called after each validation."""

    @property
    def epoch(self) -> float:
        """Number of passes over the training split so far, including the fraction of the current pass."""
        return self.progress.step / self.batches.steps_per_epoch


def open_run(config: TrainConfig) -> TrainingRun:
    """Form the process group, build the network and load the checkpoint to resume from. Collective: ALL ranks call it.

    Raises:
        InputError: the shard set, the configuration or a checkpoint cannot be used.
        RunError: processes are missing, or the run's folder cannot be written.
    """
    try:
        return _open_run(config)
    except (InputError, RunError) as error:
        # Destroy the group while all ranks are alive. If the interpreter destroys it at exit, it may abort the process.
        if error.met_by_all and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        raise


def _open_run(config: TrainConfig) -> TrainingRun:
    with errors_met_by_all(InputError):
        settle_environment("train", in_worker=True)
        refuse_environment("train")
        world_size = expected_world_size()
        refuse_unusable(config, world_size)
    out = config.run.out
    accelerator = make_accelerator(config.run, world_size)
    # Some configurations of Accelerate turn TF32 on.
    use_exact_float32()
    split, validation = run_on_all_processes(lambda: open_data(config, world_size))
    start, lock = claim_folder(config, split.manifest)
    if accelerator.device.type == "cpu":
        choose_and_record_threads(start.progress, world_size)
    data, rank = config.data, accelerator.process_index
    order = (config.run.seed, data.batch_size, data.window_shards, data.augment)
    batch_plan = BatchPlan(*order, rank, world_size, start.progress.groups, data.mix)
    batches = run_on_all_processes(lambda: plan_batches(data, split, batch_plan))
    total_steps = count_steps(config.run, batches.steps_per_epoch)
    plan = choose_and_record_memory_plan(config, split.manifest, accelerator, start.progress)
    network = build_network(config, split.manifest, accelerator, plan.checkpointing)
    # Wrap before loading, because wrappers that split the weights over processes replace the parameters.
    wrapped, optimizer = accelerator.prepare(network, build_optimizer(config.optim, network))
    if isinstance(wrapped, DistributedDataParallel):
        # The network's buffers never change. Newer versions of torch warn if the constructor is told so.
        wrapped.broadcast_buffers = False
    decay = config.optim.ema_decay
    average = WeightAverage(network, decay) if decay is not None else None
    learner = Learner(network, optimizer.optimizer, average, accelerator.scaler)
    if start.checkpoint:
        learner.load(start.checkpoint)
    if start.progress.step < total_steps:
        write_on_main_process(f"{out}: the configuration", lambda: prepare_folder(config, out, start))
    run = TrainingRun(
        config, accelerator, batches, validation, learner, wrapped, start.progress, total_steps, out, lock
    )
    announce(run)
    return run


def count_steps(config: RunSettings, steps_per_epoch: int) -> int:
    """Return the number of steps of a whole run."""
    return min(config.epochs * steps_per_epoch, config.max_steps or 2**62)


def claim_folder(config: TrainConfig, manifest: Manifest) -> tuple[ResumePoint, FolderLock | None]:
    """Lock the run's folder and find where the run starts. Collective: ALL ranks call it.

    Returns:
        Where the run starts and, on the main process, the lock.

    Raises:
        InputError: another job is training this run, a checkpoint cannot be used, or the processes see different files.
    """
    out = config.run.out
    start = run_on_main_process(lambda: find_start(config, manifest))
    run_on_all_processes(lambda: refuse_other_view(config.data, manifest, start.progress.data_sha256, start.checkpoint))
    lock = hold_folder(out)
    # Another job may have saved checkpoints before this one took the lock.
    start = run_on_main_process(lambda: start if start.is_current(out) else find_start(config, manifest))
    return start, lock


def find_start(config: TrainConfig, manifest: Manifest) -> ResumePoint:
    """Find where the run starts. Only one rank calls it.

    Raises:
        InputError: the checkpoint is damaged or was saved with another sample order, or the trace would overwrite a
            file of another kind.
    """
    if config.data.trace is not None:
        refuse_other_file(config.data.trace)
    fresh = TrainingProgress(
        data_sha256=manifest.data_sha256,
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        window_shards=config.data.window_shards,
        groups=default_groups(config.data, is_remote(str(config.data.shards))),
        mix=config.data.mix.to_record(),
        reader=config.data.reader,
    )
    # A run goes on with its groups, for example from a local copy of its remote set.
    return find_resume_point(config.run.out, config.run.resume, fresh, keep_groups=config.data.groups is None)


def choose_and_record_threads(progress: TrainingProgress, world_size: int) -> None:
    """Choose the number of threads of this process, and record it: a resumed run computes with the same number."""
    most = most_threads(int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    # In a job, the other processes are not a load, and their launcher has chosen the number.
    if world_size == 1 and not chosen_threads():
        threads = progress.threads_for(most) or num_threads()
        torch.set_num_threads(min(torch.get_num_threads(), threads))
    progress.threads, progress.most_threads = torch.get_num_threads(), most


def prepare_folder(config: TrainConfig, out: Path, start: ResumePoint) -> None:
    """Delete the files that do not belong to the resumed run, and write its settings. Only one rank calls it."""
    clear_leftovers(out, start.checkpoint, start.progress.step)
    if start.progress.step and (out / CONFIG).is_file():
        report_changes(out, config)
    write_text(out / CONFIG, to_yaml(config))
    variables = [f"{name}: {json.dumps(value)}\n" for name, value in recorded_environment().items()]
    write_text(out / "environment.yaml", "".join(["# Variables that change how sums are rounded\n", *variables]))


def report_changes(out: Path, config: TrainConfig) -> None:
    """Print the settings that differ from those of the run so far, without those that only name places."""
    # A run of an older version lacks newer settings, which do not count.
    before, now = settings_of(read_yaml(out / CONFIG)), settings_of(to_tree(config))
    changes = [
        f"{name} {setting(before[name])} -> {setting(value)}"
        for name, value in now.items()
        if name not in PLACES and before.get(name, value) != value
    ]
    if changes:
        say(f"{out}: this run continues with changed settings: {', '.join(changes)}")


def settings_of(tree: dict[str, Any], part: str = "") -> dict[str, Any]:
    """Return the values of a configuration tree by their dotted names, which begin with `part`."""
    settings: dict[str, Any] = {}
    for name, value in tree.items():
        settings |= settings_of(value, f"{part}{name}.") if isinstance(value, dict) else {f"{part}{name}": value}
    return settings


def choose_and_record_memory_plan(
    config: TrainConfig, manifest: Manifest, accelerator: Accelerator, progress: TrainingProgress
) -> MemoryPlan:
    """Choose how a step fits into memory, and record the choice in the progress. Collective: ALL ranks call it.

    A resumed run with the same needs repeats its earlier choice on the same hardware, because the free memory of a GPU
    is not always the same, and another choice would round differently.
    """
    count, gpu_bytes = accelerator.num_processes, free_gpu_bytes(accelerator)

    def choose() -> tuple[MemoryPlan, str]:
        plan = choose_memory_plan(config, manifest, count, gpu_bytes)
        if gpu_bytes is None:
            return plan, f"{count} x {accelerator.device.type}"
        crop = config.data.augment.crop
        hardware = f"{count} x {torch.cuda.get_device_name(accelerator.device)}, precision {config.run.precision}"
        hardware += f", crops of {crop[0]} x {crop[1]}" if crop else ""
        if config.run.activation_checkpointing == "auto" and progress.hardware == hardware:
            micro_batch = plan.micro_batch if config.data.micro_batch else progress.micro_batch
            plan = MemoryPlan(cast(Checkpointing, progress.activation_checkpointing), micro_batch)
        return plan, hardware

    # All ranks must take equally many passes, even if their GPUs differ.
    plan, hardware = run_on_main_process(choose)
    progress.hardware, progress.micro_batch = hardware, plan.micro_batch
    progress.activation_checkpointing = plan.checkpointing
    return plan


def announce(run: TrainingRun) -> None:
    """Print a summary of the training that follows, on the main process."""
    if not run.accelerator.is_main_process:
        return
    step, count = run.progress.step, run.accelerator.num_processes
    if step >= run.total_steps:
        say(f"{run.out}: training is already complete at step {step} of {run.total_steps}")
        return
    start = f"from step {step}" if step else "from the beginning"
    summary = (
        f"training {start} to step {run.total_steps}: {run.batches.split.num_samples} samples, global batch "
        f"{run.config.data.batch_size}, {count} process{'es' if count > 1 else ''} on "
        f"{run.accelerator.device.type}, {run.config.run.precision}"
    )
    say(summary)
    progress, memory = run.progress, []
    if progress.micro_batch < run.config.data.batch_size // count:
        memory.append(f"{progress.micro_batch} slices per pass")
    if progress.activation_checkpointing != "none":
        memory.append(f"activation checkpointing {progress.activation_checkpointing}")
    if memory:
        say(", ".join(memory))
    for line in describe_batches(run.batches, run.config.data, run.accelerator.device.type == "cuda"):
        say(line)
    warn_of_emulation(run.config.run.precision, run.accelerator.device)
    threads, most = progress.threads, progress.most_threads
    if threads < most and not chosen_threads():
        say(
            f"other processes were busy when the run began, so it computes with {threads} of {most} threads; the "
            f"environment variable OMP_NUM_THREADS={most} overrides this"
        )


def close_run(run: TrainingRun) -> None:
    """Leave the process group. The run cannot be used afterwards. Collective: ALL ranks call it."""
    # Data parallelism holds a reference to the process group. If this reference is the last one, the group's destructor
    # waits for the group's threads while it holds the interpreter lock. The threads may be waiting for that lock.
    run.accelerator.free_memory()
    del run.wrapped
    gc.collect()
    run.accelerator.state.destroy_process_group()
