"""The training loop: steps, log lines, checkpoints and validations."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.common.stop_signals import StopReason, StopRequest, stop_signals
from upfield.common.stores.transfer import TransferCancelledError
from upfield.distributed.agreement import agree_to_stop, errors_met_by_all, write_on_main_process
from upfield.distributed.checkpoint import TrainingProgress, checkpoint_folder, save_checkpoint
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.failures.memory_shortage import explain_memory_shortage
from upfield.distributed.logs.log_interval import LogInterval
from upfield.distributed.logs.pace import RunLength
from upfield.distributed.logs.run_log import RunLog
from upfield.distributed.samples.reader import Batch, count_readers
from upfield.distributed.samples.sources import load_batches
from upfield.distributed.training_run import OnValidation, TrainingRun, close_run, open_run
from upfield.distributed.training_step import QueuedStep, global_keys, settle_step, train_step
from upfield.distributed.validations.validator import Validator
from upfield.model.numerics import deterministic_algorithms

OUTLOOK = "Stopping after this step, once the run is saved."
LESS_MEMORY = "Choose a smaller --data.micro_batch or --data.batch_size, or --run.activation_checkpointing full."


def fit(
    config: TrainConfig,
    stop: StopRequest | None = None,
    on_validation: OnValidation = lambda *_: None,
    measure_whole: bool = True,
) -> TrainingProgress:
    """Train until the run ends, its time is up or a signal stops it, and return the progress.

    Collective: ALL ranks call it. Training starts from the beginning or from a checkpoint, as `run.resume` says.

    Args:
        config: configuration of the run.
        stop: request that is set when a signal arrives. All ranks then save at the same step, and this function
            returns. By default, this function handles SIGTERM and SIGUSR1 itself.
        on_validation: function that is called on every rank after each validation, once its figures are saved.
        measure_whole: whether to measure the best model on the whole validation split at the end, if
            `run.validation_slices` limits the validations during training.

    Returns:
        How far the run has come.

    Raises:
        InputError: the shard set, the configuration or a checkpoint cannot be used.
        RunError: the loss is not finite, memory ran out, or a file of the run cannot be written.
    """
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_signals())
        if config.run.max_minutes is not None:
            stop.ends_at_s = time.monotonic() + 60 * config.run.max_minutes
        stack.enter_context(errors_met_by_all())
        stack.enter_context(explain_memory_shortage("training", LESS_MEMORY))
        with errors_met_by_all(InputError):
            stack.enter_context(deterministic_algorithms(config.run.deterministic))
        run = open_run(config)
        run.on_validation = on_validation
        if run.lock is not None:
            stack.enter_context(run.lock)
        with closing(RunLog(run.accelerator, run.out, run.progress, run_length(run), config.data.trace)) as log:
            if not agree_to_stop(stop):
                train_and_measure(run, log, stop, measure_whole)
        report_stop(run, stop)
    close_run(run)
    return run.progress


def train_and_measure(run: TrainingRun, log: RunLog, stop: StopRequest, measure_whole: bool) -> None:
    """Train, and measure the best model on the whole validation split at the end. Collective: ALL ranks call it."""
    validator = Validator(run, log, stop, measure_whole)
    with cancel_downloads(run, stop):
        validator.measure_best_again()
        is_unvalidated = run.progress.validated_step < run.progress.step and is_due(run, run.config.run.validate_every)
        if is_unvalidated and not stop.agreed:
            # The previous job ended after it saved this checkpoint but before it validated the weights.
            validator.validate_and_report(saved=True)
        if stop.agreed:
            return
        if run.progress.step < run.total_steps:
            train(run, log, stop, validator)
        else:
            # The previous job ended before it measured the best model.
            validator.measure_best_on_whole_split()


def run_length(run: TrainingRun) -> RunLength:
    """Return the work of the whole run."""
    config, whole = run.config, run.validation.num_samples
    crop, (_, *size) = config.data.augment.crop, run.validation.high_shape
    part = min(config.run.validation_slices or whole, whole)
    return RunLength(
        total_steps=run.total_steps,
        batch_size=config.data.batch_size,
        validate_every=config.run.validate_every or run.batches.steps_per_epoch,
        validation_slices=part,
        final_slices=whole if part < whole else 0,
        crop_share=math.prod(crop) / math.prod(size) if crop else 1.0,
        max_minutes=config.run.max_minutes,
        preset=config.model.preset,
    )


def report_stop(run: TrainingRun, stop: StopRequest) -> None:
    """Print why the run stops before its last step, what is kept and how to continue, on the main process."""
    step = run.progress.step
    if not stop.agreed or not run.accelerator.is_main_process:
        return
    if stop.agreed == StopReason.TIME and step == run.total_steps:
        return
    why = "stopped by a signal" if stop.agreed == StopReason.SIGNAL else "the time of run.max_minutes is up"
    if step == 0:
        say(f"{run.out}: {why} before the first step; the same command starts the training")
    else:
        say(
            f"{run.out}: {why} after step {step} of {run.total_steps}; everything up to this step is saved, and the "
            "same command continues from there"
        )


def train(run: TrainingRun, log: RunLog, stop: StopRequest, validator: Validator) -> None:
    """Take steps until the run ends, its time is up or a signal stops it. Collective: ALL ranks call it."""
    config = run.config.data
    interval = LogInterval(run.progress)
    steps = range(run.progress.step, run.total_steps)
    on_gpu = run.accelerator.device.type == "cuda"
    num_workers = count_readers(config, on_gpu)
    batches = load_batches(run.batches, steps, num_workers, config.prefetch, pin_memory=on_gpu)
    queued = None
    with closing(batches):
        for batch in interval.time_waits(until_cancelled(batches, stop)):
            queued = train_step(run, batch, stop, queued)
            interval.add(config.batch_size)
            queued = finish_step(run, log, interval, queued, stop, validator)
            if stop.agreed:
                return
    if queued is not None:
        settle_step(run, queued, stop)
    if run.progress.step < run.total_steps:
        # A signal ended a download, so no batch came after the last step.
        stop.agreed = StopReason.SIGNAL
        save_unless_saved(run)


@contextmanager
def cancel_downloads(run: TrainingRun, stop: StopRequest) -> Iterator[None]:
    """Make a signal cancel the downloads for which a single process waits inside the `with` block.

    One of several processes cannot stop alone. It waits for its download, takes the step together with the others, and
    then all stop.
    """
    stop.outlook = OUTLOOK
    if run.accelerator.num_processes == 1 and run.config.data.reader == "exact":
        stop.cancel = run.batches.split.source.stop
        if stop.asked:
            stop.cancel()
    try:
        yield
    finally:
        stop.cancel = lambda: None


def until_cancelled(batches: Iterator[Batch], stop: StopRequest) -> Iterator[Batch]:
    """Yield batches until there are no more, or until a signal has cancelled the download of one."""
    try:
        yield from batches
    except TransferCancelledError:
        if not stop.asked:
            raise


def finish_step(
    run: TrainingRun,
    log: RunLog,
    interval: LogInterval,
    queued: QueuedStep,
    stop: StopRequest,
    validator: Validator,
) -> QueuedStep | None:
    """Settle the step, and log, save and validate, if any of these is due. Collective: ALL ranks call it.

    Returns:
        The step, unless it is settled.
    """
    config, step = run.config, run.progress.step
    if config.data.trace:
        log.trace((step - 1) // run.batches.steps_per_epoch, step, global_keys(run, queued.samples))
    log.advance()
    log_now = step % config.run.log_every == 0 or step == run.total_steps
    validate_now = is_due(run, config.run.validate_every)
    save_now = is_due(run, config.run.checkpoint_every)
    # On a GPU, the host reads the values of a step while the device computes the next one.
    if not (log_now or validate_now or save_now or stop.agreed) and run.accelerator.device.type == "cuda":
        return queued
    settle_step(run, queued, stop)
    if log_now:
        log_step(run, log, interval)
    save_now = save_now or bool(stop.agreed)
    validate_now = (validate_now or stop.agreed == StopReason.TIME) and stop.agreed != StopReason.SIGNAL
    if not (save_now or validate_now):
        return None
    with interval.paused(), log.pace.paused():
        # Save before the validation, which takes so long that a crash or a signal may end the process in the meantime.
        if save_now:
            save(run)
        if validate_now:
            validator.validate_and_report(saved=save_now)
            if stop.agreed == StopReason.TIME or (step == run.total_steps and not stop.agreed):
                validator.measure_best_on_whole_split()
            if stop.agreed == StopReason.SIGNAL and not save_now:
                save(run)
    return None


def log_step(run: TrainingRun, log: RunLog, interval: LogInterval) -> None:
    """Write a log line about the steps since the last log line. Collective: ALL ranks call it."""
    values = interval.finish(run.accelerator)
    values |= {"lr": run.learner.optimizer.param_groups[0]["lr"], "skipped": run.progress.skipped}
    if run.learner.scaler is not None:
        values |= {"overflows": run.progress.overflows}
    log.metrics("train", run.progress.step, run.epoch, values)


def is_due(run: TrainingRun, every: int | None) -> bool:
    """Return whether an action is due: every `every` steps (None: at the end of each epoch) and after the last step."""
    step = run.progress.step
    return step == run.total_steps or step % (every or run.batches.steps_per_epoch) == 0


def save_unless_saved(run: TrainingRun) -> None:
    """Write a checkpoint unless this step has one. Only a single process calls it."""
    if run.progress.step and not checkpoint_folder(run.out, run.progress.step).is_dir():
        save(run)


def save(run: TrainingRun) -> None:
    """Write a checkpoint. Collective: ALL ranks call it.

    Raises:
        RunError: the checkpoint could not be written; the previous checkpoint is intact.
    """
    state, keep = run.learner.state(), run.config.run.keep_checkpoints
    sizes = run.learner.network.config
    what = f"{run.out}: the checkpoint of step {run.progress.step}"
    write_on_main_process(what, lambda: save_checkpoint(run.out, sizes, state, run.progress, keep))
