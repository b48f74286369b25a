"""The training loop: one step, one epoch boundary, one way out."""

import math
from collections.abc import Iterable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from upfield.common.errors import DivergedError, InputError, RunError
from upfield.common.progress import say
from upfield.common.stop_signals import StopRequest, stop_signals
from upfield.distributed.agreement import errors_met_by_all, write_on_main_process
from upfield.distributed.assembly import Figures, OnValidation, Training, set_up, tear_down
from upfield.distributed.checkpoint import TrainingProgress, save_best, save_checkpoint, save_progress
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.meter import Meter
from upfield.distributed.noise import gating_noise
from upfield.distributed.record import Record
from upfield.distributed.samples.fetcher import fetch_ahead
from upfield.distributed.samples.reader import Batch, training_loader
from upfield.distributed.schedule import learning_rate
from upfield.distributed.validation import validate
from upfield.model.losses import restoration_loss


def fit(
    config: TrainConfig, stop: StopRequest | None = None, validated: OnValidation = lambda *_: None
) -> TrainingProgress:
    """Train, from the beginning or from the last checkpoint, to the end or to a signal. Collective: ALL ranks call it.

    Args:
        config: the run's.
        stop: set when SIGTERM or SIGUSR1 comes, upon which all ranks save at the same step and this returns; by default
            this function listens to them itself.
        validated: called on every rank after each validation, when what it found is saved.

    Raises:
        InputError: the shard set, the configuration or a checkpoint does not fit.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    with ExitStack() as leaving:
        stop = stop or leaving.enter_context(stop_signals())
        leaving.enter_context(errors_met_by_all())
        try:
            run = set_up(config)
        except (InputError, RunError) as error:
            # All are here; a group that is left to the interpreter's end may abort it.
            if error.met_by_all and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            raise
        if run.lock is not None:
            leaving.enter_context(run.lock)
        record = leaving.enter_context(
            closing(Record(run.accelerator, run.out, run.progress, run.total_steps, config.data.trace))
        )
        run.validated = validated
        if run.progress.validated_step < run.progress.step and is_due(run, config.run.validate_every):
            # The process ended between the checkpoint of a step and its validation.
            figures = validate_and_keep_best(run, record)
            keep_progress(run)
            run.validated(run.progress, run.epoch, figures)
        train(run, record, stop)
    tear_down(run)
    return run.progress


def train(run: Training, record: Record, stop: StopRequest) -> None:
    """Do the steps that are left, or those until a signal. Collective: ALL ranks call it."""
    config = run.config.data
    meter = Meter(run.progress)
    steps = range(run.progress.step, run.total_steps)
    pin_memory = run.accelerator.device.type == "cuda"
    batches = training_loader(run.batches, steps, config.num_workers, config.prefetch, pin_memory)
    batches = fetch_ahead(batches, run.batches, steps, config.num_workers * config.prefetch)
    with closing(batches):
        for batch in meter.waiting(batches):
            meter.add(train_step(run, batch, stop), config.batch_size)
            after_step(run, record, meter, batch, stop)
            if stop.agreed:
                if run.accelerator.is_main_process:
                    say(f"stopped by a signal after step {run.progress.step}; the same command goes on from there")
                return


def train_step(run: Training, batch: Batch, stop: StopRequest) -> dict[str, float]:
    """Do one optimizer step. Collective: ALL ranks call it.

    Returns:
        Its loss terms, means over all ranks; nothing if the batch was left out.
    """
    accelerator, config = run.accelerator, run.config
    parts = batch.split(config.data.micro_batch or len(batch.samples))
    totals: dict[str, Tensor] = {}
    for part in parts:
        # Gradients are summed over the processes once, with the last part's.
        with nullcontext() if part is parts[-1] else accelerator.no_sync(run.wrapped):
            loss, terms = part_loss(run, part)
            weight = len(part.samples) / len(batch.samples)
            accelerator.backward(weight * loss)
        for name, value in ({"loss": loss.detach()} | terms).items():
            totals[name] = totals.get(name, 0) + weight * value
    # Without a limit this only measures.
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), config.optim.clip_norm or math.inf)
    assert norm is not None
    # Where weights are split, each process holds its part of the norm.
    totals["grad_norm"] = (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
    found = agree(run, totals, stop)
    # In fp16 gradients overflow now and then; the loss scaling sees to those itself.
    watched = ("loss",) if run.learner.scaler is not None else ("loss", "grad_norm")
    if found.bad_ranks(watched):
        leave_out(run, batch, found)
        terms = {}
    else:
        step_optimizer(run)
        # In fp16 the norm is infinite where the scale was too large.
        terms = {name: value for name, value in found.means().items() if math.isfinite(value)}
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    return terms


def part_loss(run: Training, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the loss of a part of a batch, a scalar, and its terms. Collective: ALL ranks call it."""
    device, config = run.accelerator.device, run.config
    low, high = (tensor.to(device, non_blocking=True).float() for tensor in (part.low, part.high))
    key = (config.run.seed, run.progress.step)
    noise = gating_noise(run.learner.network.config, (low.shape[-2], low.shape[-1]), key, part.samples, device)
    restored, load_loss = run.wrapped(low, noise)
    return restoration_loss(restored, high, load_loss, config.loss)


def step_optimizer(run: Training) -> None:
    """Let the weights follow their gradients, and the average the weights."""
    progress = run.progress
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.config.optim, progress.updates, run.total_steps)
    run.optimizer.step()
    if run.accelerator.optimizer_step_was_skipped:  # fp16's scale was too large and is halved now.
        progress.overflows += 1
    elif run.learner.average is not None:
        run.learner.average.update(progress.updates)


@dataclass(frozen=True)
class StepValues:
    """Loss terms and gradient norm of a step on every rank."""

    names: tuple[str, ...]
    """Of the values."""
    rows: tuple[tuple[float, ...], ...]
    """Per rank, the value of each name."""

    def means(self) -> dict[str, float]:
        """Give the mean over ranks of each value."""
        return {name: sum(values) / len(values) for name, *values in zip(self.names, *self.rows, strict=True)}

    def bad_ranks(self, names: Iterable[str]) -> list[int]:
        """Give the ranks on which one of these values is not finite."""
        places = [self.names.index(name) for name in names]
        return [rank for rank, row in enumerate(self.rows) if not all(math.isfinite(row[i]) for i in places)]


def agree(run: Training, values: dict[str, Tensor], stop: StopRequest) -> StepValues:
    """Let all ranks stop at the same step, and know each other's scalar `values`. Collective: ALL ranks call it."""
    asked = torch.tensor(float(stop.asked), device=run.accelerator.device)
    own = torch.stack([asked, *(value.float() for value in values.values())])
    gathered = run.accelerator.gather(own[None])
    assert isinstance(gathered, Tensor)
    rows = gathered.tolist()
    stop.agreed = any(row[0] for row in rows)
    return StepValues(tuple(values), tuple(tuple(row[1:]) for row in rows))


def leave_out(run: Training, batch: Batch, found: StepValues) -> None:
    """Leave out a batch that cannot be learnt from, or stop the run. Collective: ALL ranks call it.

    Raises:
        DivergedError: the configuration says to stop, or it happened too often; the weights are as before the step.
    """
    progress, config = run.progress, run.config.run
    # Gradient, load loss, and with it the loss, are shared by all; the other terms are those of a rank's own samples.
    own_terms = [name for name in found.names if name not in ("loss", "load", "grad_norm")]
    bad_ranks = found.bad_ranks(own_terms) or found.bad_ranks(found.names)
    keys = global_keys(run, batch)
    share = len(keys) // len(found.rows)
    suspects = [key for rank in bad_ranks for key in keys[rank * share : (rank + 1) * share]]
    values = dict(zip(found.names, found.rows[bad_ranks[0]], strict=True))
    problem = (
        f"step {progress.step + 1}: expected a finite loss and gradient, found loss {values['loss']:g} and gradient "
        f"norm {values['grad_norm']:g} with samples {', '.join(suspects)}"
    )
    if config.on_nonfinite == "stop" or progress.skipped >= config.max_skips:
        before = f" after {progress.skipped} skipped before (run.max_skips)" if config.on_nonfinite == "skip" else ""
        raise DivergedError(
            f"{problem}{before}; the weights are as before the step. Look at these samples, check their shards with "
            f"upfield verify, or lower --optim.lr (now {run.config.optim.lr:g})"
        )
    progress.skipped += 1
    if (scaler := run.learner.scaler) is not None:
        # Its gradients were unscaled for their norm, and it would not unscale others before it is told so.
        scaler.update(scaler.get_scale())
    if run.accelerator.is_main_process:
        say(f"{problem}; left out, {progress.skipped} of at most {config.max_skips}")


def after_step(run: Training, record: Record, meter: Meter, batch: Batch, stop: StopRequest) -> None:
    """Log, save and validate when it is time. Collective: ALL ranks call it."""
    config, step = run.config, run.progress.step
    per_epoch = run.batches.steps_per_epoch
    if config.data.trace:
        record.trace((step - 1) // per_epoch, step, global_keys(run, batch))
    record.advance()
    if step % config.run.log_every == 0 or step == run.total_steps:
        values = meter.read(run.accelerator)
        left_out = {"skipped": run.progress.skipped} | (
            {"overflows": run.progress.overflows} if run.learner.scaler is not None else {}
        )
        record.metrics("train", step, step / per_epoch, values | {"lr": run.optimizer.param_groups[0]["lr"]} | left_out)
    saving = stop.agreed or is_due(run, config.run.checkpoint_every)
    with meter.paused():
        # Saved first: a validation takes its time, in which much can happen. A signal does not wait for it.
        if saving:
            save(run)
        if is_due(run, config.run.validate_every) and not stop.agreed:
            figures = validate_and_keep_best(run, record)
            if saving:
                keep_progress(run)
            run.validated(run.progress, run.epoch, figures)


def is_due(run: Training, every: int | None) -> bool:
    """Tell whether something that is done every so many steps, by default every epoch, and at the end, is due now."""
    step = run.progress.step
    return step == run.total_steps or step % (every or run.batches.steps_per_epoch) == 0


def validate_and_keep_best(run: Training, record: Record) -> Figures:
    """Validate, keep the model if its mean PSNR is the best so far, and give what was found. Collective: ALL call it.

    Where an average of the weights is kept, it is the model.
    """
    learner, config, step = run.learner, run.config.run, run.progress.step
    with learner.average.swapped_in() if learner.average is not None else nullcontext():
        learner.network.eval()
        found = validate(
            run.accelerator, learner.network, run.validation, config.validation_batch_size, config.pictures
        )
        learner.network.train()
        run.progress.validated_step = step
        record.metrics("validation", step, run.epoch, found.figures)
        record.pictures(step, found.pictures)
        psnr = found.figures["psnr_slice"]
        if not math.isfinite(psnr):
            if run.accelerator.is_main_process:
                say(f"validation at step {step} has no finite PSNR; the best model stays what it was")
        elif run.progress.best_psnr is None or psnr > run.progress.best_psnr:
            run.progress.best_psnr, run.progress.best_step = psnr, step
            keep_best(run, found.figures)
    return found.figures


def keep_best(run: Training, figures: Figures) -> None:
    """Write the present weights as the best model. Collective: ALL ranks call it."""
    weights = run.learner.weights()
    manifest, step = run.validation.manifest, run.progress.step
    record = {
        "step": step,
        "epoch": run.epoch,
        "validation": figures,
        "data_sha256": manifest.data_sha256,
        "normalisation": manifest.normalisation,
        "context": manifest.context,
    }
    sizes = run.learner.network.config
    what = f"{run.out}: the best model, of step {step}"
    write_on_main_process(what, lambda: save_best(run.out, weights, sizes, run.config, record))


def save(run: Training) -> None:
    """Write a checkpoint. Collective: ALL ranks call it.

    Raises:
        RunError: it could not be written; the one before is still there.
    """
    state, keep = run.learner.state(), run.config.run.keep_checkpoints
    sizes = run.learner.network.config
    what = f"{run.out}: the checkpoint of step {run.progress.step}"
    write_on_main_process(what, lambda: save_checkpoint(run.out, sizes, state, run.progress, keep))


def keep_progress(run: Training) -> None:
    """Write what a validation has changed into this step's checkpoint. Collective: ALL ranks call it.

    Raises:
        RunError: it could not be written.
    """
    what = f"{run.out}: the progress of step {run.progress.step}"
    write_on_main_process(what, lambda: save_progress(run.out, run.progress))


def global_keys(run: Training, batch: Batch) -> list[str]:
    """Give the keys of the whole global batch, in order. Collective: ALL ranks call it."""
    samples = run.accelerator.gather(batch.samples.to(run.accelerator.device))
    assert isinstance(samples, Tensor)
    return [run.batches.split.key(sample) for sample in samples.tolist()]
