"""The training loop: steps, log lines, checkpoints and validations."""

import math
from contextlib import ExitStack, closing, nullcontext

from upfield.common.errors import InputError
from upfield.common.progress import say
from upfield.common.stop_signals import StopRequest, stop_signals
from upfield.distributed.agreement import errors_met_by_all, write_on_main_process
from upfield.distributed.checkpoint import TrainingProgress, save_best, save_checkpoint, save_progress
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.failures.memory_shortage import explain_memory_shortage
from upfield.distributed.logs.log_interval import LogInterval
from upfield.distributed.logs.run_log import RunLog
from upfield.distributed.samples.reader import count_readers
from upfield.distributed.samples.sources import load_batches
from upfield.distributed.training_run import Figures, OnValidation, TrainingRun, close_run, open_run
from upfield.distributed.training_step import QueuedStep, global_keys, settle_step, train_step
from upfield.distributed.validation import validate
from upfield.imaging.contrast import to_value
from upfield.model.numerics import deterministic_algorithms

LESS_MEMORY = "Choose a smaller --data.micro_batch or --data.batch_size, or --run.activation_checkpointing full."


def fit(
    config: TrainConfig, stop: StopRequest | None = None, on_validation: OnValidation = lambda *_: None
) -> TrainingProgress:
    """Train until the run ends or a signal stops it, and return the progress. Collective: ALL ranks call it.

    Training starts from the beginning or from a checkpoint, as `run.resume` says.

    Args:
        config: configuration of the run.
        stop: request that is set when SIGTERM or SIGUSR1 arrives. All ranks then save at the same step, and this
            function returns. By default, this function handles these signals itself.
        on_validation: function that is called on every rank after each validation, once its figures are saved.

    Returns:
        How far the run has come.

    Raises:
        InputError: the shard set, the configuration or a checkpoint cannot be used.
        RunError: the loss is not finite, memory ran out, or a file of the run cannot be written.
    """
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_signals())
        stack.enter_context(errors_met_by_all())
        stack.enter_context(explain_memory_shortage("training", LESS_MEMORY))
        with errors_met_by_all(InputError):
            stack.enter_context(deterministic_algorithms(config.run.deterministic))
        run = open_run(config)
        run.on_validation = on_validation
        if run.lock is not None:
            stack.enter_context(run.lock)
        log = RunLog(run.accelerator, run.out, run.progress, run.total_steps, config.data.trace)
        stack.enter_context(closing(log))
        if run.progress.validated_step < run.progress.step and is_due(run, config.run.validate_every):
            # The previous job ended after it saved this checkpoint but before it validated the weights.
            validate_and_report(run, log, saved=True)
        train(run, log, stop)
    close_run(run)
    return run.progress


def train(run: TrainingRun, log: RunLog, stop: StopRequest) -> None:
    """Take steps until the run ends or a signal stops it. Collective: ALL ranks call it."""
    config = run.config.data
    interval = LogInterval(run.progress)
    steps = range(run.progress.step, run.total_steps)
    on_gpu = run.accelerator.device.type == "cuda"
    num_workers = count_readers(config, on_gpu)
    batches = load_batches(run.batches, steps, num_workers, config.prefetch, pin_memory=on_gpu)
    queued = None
    with closing(batches):
        for batch in interval.time_waits(batches):
            queued = train_step(run, batch, stop, queued)
            interval.add(config.batch_size)
            queued = finish_step(run, log, interval, queued, stop)
            if stop.agreed:
                if run.accelerator.is_main_process:
                    say(f"stopped by a signal after step {run.progress.step}; the same command continues from there")
                return


def finish_step(
    run: TrainingRun, log: RunLog, interval: LogInterval, queued: QueuedStep, stop: StopRequest
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
    if not (log_now or validate_now or save_now or stop.agreed):
        return queued
    settle_step(run, queued, stop)
    if log_now:
        log_step(run, log, interval)
    save_now = save_now or stop.agreed
    with interval.paused():
        # Save before the validation, which takes so long that a crash or a signal may end the process in the meantime.
        if save_now:
            save(run)
        if validate_now and not stop.agreed:
            validate_and_report(run, log, saved=save_now)
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


def validate_and_report(run: TrainingRun, log: RunLog, saved: bool) -> None:
    """Validate, keep the best model, and report the figures. Collective: ALL ranks call it.

    Args:
        run: run to validate.
        log: log of the run.
        saved: whether this step has a checkpoint; if so, the progress in the checkpoint is updated.
    """
    figures = validate_and_keep_best(run, log)
    if saved:
        what = f"{run.out}: the progress of step {run.progress.step}"
        write_on_main_process(what, lambda: save_progress(run.out, run.progress))
    run.on_validation(run.progress, run.epoch, figures)


def validate_and_keep_best(run: TrainingRun, log: RunLog) -> Figures:
    """Validate, save the model if its mean PSNR is the best so far, and return the figures.

    If the run keeps an average of the weights, the average is validated and saved. Collective: ALL ranks call it.
    """
    learner, config, step = run.learner, run.config.run, run.progress.step
    with learner.average.swapped_in() if learner.average is not None else nullcontext():
        learner.network.eval()
        with explain_memory_shortage("validating", "Choose a smaller --run.validation_batch_size."):
            num_workers = count_readers(run.config.data, run.accelerator.device.type == "cuda")
            validation = validate(
                run.accelerator,
                learner.network,
                run.validation,
                config.validation_batch_size,
                config.pictures,
                num_workers,
                run.config.data.prefetch,
            )
        learner.network.train()
        run.progress.validated_step = step
        log.metrics("validation", step, run.epoch, validation.figures)
        log.pictures(step, validation.pictures)
        psnr = validation.figures["psnr_slice"]
        if not math.isfinite(psnr):
            if run.accelerator.is_main_process:
                say(f"validation at step {step} has no finite PSNR; the best model is unchanged")
        elif run.progress.best_psnr is None or psnr > run.progress.best_psnr:
            run.progress.best_psnr, run.progress.best_step = psnr, step
            keep_best(run, validation.figures)
    return validation.figures


def keep_best(run: TrainingRun, figures: Figures) -> None:
    """Write the current weights as the best model. Collective: ALL ranks call it."""
    weights = run.learner.weights()
    manifest, step = run.validation.manifest, run.progress.step
    record = {
        "step": step,
        "epoch": run.epoch,
        "validation": figures,
        "data_sha256": manifest.data_sha256,
        "normalisation": manifest.normalisation,
        "geometry": manifest.geometry,
        "context": manifest.context,
        "contrast": to_value(manifest.contrasts),
        "skull_stripped": manifest.skull_stripped,
    }
    sizes = run.learner.network.config
    what = f"{run.out}: the best model of step {step}"
    write_on_main_process(what, lambda: save_best(run.out, weights, sizes, run.config, record))


def save(run: TrainingRun) -> None:
    """Write a checkpoint. Collective: ALL ranks call it.

    Raises:
        RunError: the checkpoint could not be written; the previous checkpoint is intact.
    """
    state, keep = run.learner.state(), run.config.run.keep_checkpoints
    sizes = run.learner.network.config
    what = f"{run.out}: the checkpoint of step {run.progress.step}"
    write_on_main_process(what, lambda: save_checkpoint(run.out, sizes, state, run.progress, keep))
