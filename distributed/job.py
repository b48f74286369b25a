"""A training job on this machine: start its processes or run as one of them, and return an exit code."""

import os
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from upfield.common.addresses import is_address
from upfield.common.command import to_tree
from upfield.common.cores import most_threads
from upfield.common.errors import EXIT_FAILURE, InputError, RunError
from upfield.common.grammar.yaml_files import read_yaml
from upfield.common.progress import say
from upfield.common.stop_signals import StopReason, StopRequest
from upfield.common.tasks import end_with_parent
from upfield.distributed.checkpoint import (
    ResumePoint,
    TrainingProgress,
    list_checkpoints,
    read_best_record,
    read_progress,
)
from upfield.distributed.configuration import RunConfig, TrainConfig, TrainSettings
from upfield.distributed.failures.lost_process import (
    describe_lost_process,
    explain_abort,
    is_lost_process,
    is_reported,
    tell_others,
)
from upfield.distributed.launch import SCRIPT, relaunch
from upfield.distributed.loop import OUTLOOK, fit
from upfield.distributed.preconditions import open_data, refuse_shared_gpus, refuse_unusable
from upfield.distributed.process_group import expected_world_size, wait_for_main_node
from upfield.distributed.training_run import count_steps, find_start
from upfield.model.baseline import describe_gain, warn_if_below_cubic
from upfield.model.weights import CONFIG
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.shard_list import make_absolute
from upfield.sharding.shardset.shard_set import open_set

S = TypeVar("S", bound=TrainSettings)


def run_job(config: TrainConfig, stop: StopRequest) -> int:
    """Train in this process, or in `config.processes` processes started here, and return the exit code.

    Args:
        config: configuration of the run.
        stop: request that is set when a signal asks the run to stop.

    Raises:
        InputError: the shard set, the configuration or a checkpoint cannot be used.
        RunError: the run cannot continue.
    """
    config = with_absolute_paths(config)
    if stop.asked and "WORLD_SIZE" not in os.environ:
        # In a job of several processes, all agree on this after they have found each other.
        return report_no_start(config)
    if config.processes > 1 and "WORLD_SIZE" not in os.environ:
        start = check_before_launch(config)
        if stop.asked:
            return report_no_start(config)
        stop.outlook = OUTLOOK
        return relaunch(SCRIPT, config, stop, start.progress.threads_for(most_threads(config.processes)))
    return train_in_process(config, stop)


def check_before_launch(config: TrainConfig) -> ResumePoint:
    """Make each process's checks before any process starts, and return where the run starts.

    An error therefore appears immediately and only once.

    Raises:
        InputError: the shard set, the configuration or a checkpoint cannot be used.
        RunError: a remote store does not respond.
    """
    refuse_unusable(config, config.processes)
    refuse_shared_gpus(config.processes)
    return find_start(config, open_data(config, config.processes)[0].manifest)


def train_in_process(config: TrainConfig, stop: StopRequest) -> int:
    """Train as one process of the job and return its exit code. Collective: ALL ranks call it.

    The processes of a machine print an error that they share once (`print_error`). An error of one rank names it, and
    the others, which lose that rank, say nothing.

    Raises:
        InputError: the shard set, the configuration or a checkpoint cannot be used.
        RunError: the run cannot continue, or another process of the job has ended.
    """
    if (finished := find_finished(config)) is not None:
        return report_end(config, finished)
    explained = nullcontext()
    if expected_world_size() > 1:
        end_with_parent()
        wait_for_main_node(config.run.timeout_s, stop)
        if torch.cuda.is_available() and is_first_on_machine():
            explained = explain_abort(f"upfield train: error: {describe_lost_process(config.run.timeout_s)}")
    try:
        with explained:
            progress = fit(config, stop)
    except (InputError, RunError, OSError) as error:
        raise tell_others(error) from error
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        if not is_first_on_machine() or is_reported():
            return EXIT_FAILURE
        lost = RunError(describe_lost_process(config.run.timeout_s))
        lost.is_agreed = True
        raise lost from error
    return report_end(config, progress) or (config.run.stopped_code if stop.agreed == StopReason.SIGNAL else 0)


def report_no_start(config: TrainConfig) -> int:
    """Print that a signal arrived before training began, and return the exit code."""
    say(f"{config.run.out}: stopped by a signal before training began; nothing was changed")
    return config.run.stopped_code


def report_end(config: TrainConfig, progress: TrainingProgress) -> int:
    """Print how far the run has come, on the main process, and return the exit code of success."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    out, record = config.run.out, read_best_record(config.run.out)
    if record is None or progress.best_step is None:
        print(f"{out}: step {progress.step}, not validated yet")
        return 0
    figures, step = record["validation"], record["step"]
    gain = describe_gain(figures)
    print(
        f"{out}: step {progress.step}, best validation PSNR {figures['psnr_slice']:z.2f} dB at step {step}"
        f"{f', {gain}' if gain else ''}",
        flush=True,
    )
    if warning := warn_if_below_cubic(str(out), step, figures):
        say(warning)
    return 0


def find_finished(config: TrainConfig) -> TrainingProgress | None:
    """Return the progress of the run if it is complete, or None if there is still work to do.

    Each process finds this out for itself, before the process group is formed: if a cluster starts a lost process again
    after the others have finished, nobody would join its group. A run counts as complete only with the same
    configuration and data. Problems are left to the processes together, which agree on them.
    """
    out = config.run.out
    checkpoints = list_checkpoints(out) if config.run.resume == "auto" else []
    if not checkpoints:
        return None
    with suppress(InputError, RunError, OSError, ValueError, TypeError):
        saved = read_progress(checkpoints[-1])
        trained = read_yaml(out / CONFIG)
        if saved.validated_step < saved.step or trained | {"processes": config.processes} != to_tree(config):
            return None
        manifest = open_set(config.data.shards, config.data).manifest
        if is_best_unmeasured(out, manifest):
            return None
        samples = sum(entry.samples for entry in manifest.shards("train"))
        total_steps = count_steps(config.run, samples // config.data.batch_size)
        # This also checks the checkpoint's files and data.
        if saved.step >= total_steps and (progress := find_start(config, manifest).progress).step == saved.step:
            if is_first_on_machine():
                say(f"{out}: training is already complete at step {saved.step} of {total_steps}")
            return progress
    return None


def is_best_unmeasured(out: Path, manifest: Manifest) -> bool:
    """Return whether the best model was chosen on a part of the validation split and not measured on the whole."""
    record = read_best_record(out)
    whole = sum(entry.samples for entry in manifest.shards("val"))
    return record is not None and record["validation"].get("slices", whole) < whole


def is_first_on_machine() -> bool:
    """Return whether this process is the first of the job on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def with_absolute_paths(config: S) -> S:
    """Return the configuration with absolute paths, because commands in other folders read the run's copy of it."""

    def absolute(path: Path | None) -> Path | None:
        return path and path.absolute()

    shards = config.data.shards
    resume = config.run.resume if config.run.resume in ("auto", "none") else str(Path(config.run.resume).absolute())
    run = replace(config.run, resume=resume)
    return replace(
        config,
        data=replace(
            config.data,
            shards=shards if is_address(str(shards)) else make_absolute(str(shards)),
            trace=absolute(config.data.trace),
            cache_dir=absolute(config.data.cache_dir),
        ),
        model=replace(config.model, init=absolute(config.model.init)),
        run=replace(run, out=run.out.absolute()) if isinstance(run, RunConfig) else run,
    )
