"""The training loop: one step, one epoch boundary, one way out."""

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from upfield.distributed.agreement import errors_met_by_all, write_on_main_process
from upfield.distributed.assembly import Training, set_up, tear_down
from upfield.distributed.checkpoint import Progress, save_best, save_checkpoint
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.fetcher import fetched_ahead
from upfield.distributed.meter import Meter
from upfield.distributed.noise import gating_noise
from upfield.distributed.reader import Batch, training_loader
from upfield.distributed.record import Record
from upfield.distributed.schedule import learning_rate
from upfield.distributed.stopping import StopRequest, stop_signals
from upfield.distributed.validation import validate
from upfield.model.losses import restoration_loss
from upfield.sharding.errors import InputError, RunError
from upfield.sharding.progress import say


def fit(config: TrainConfig) -> Progress:
    """Train, from the beginning or from the last checkpoint, to the end or to a signal. Collective: ALL ranks call it.

    SIGTERM and SIGUSR1 make all ranks save at the same step and return.

    Raises:
        InputError: the shard set, the configuration or a checkpoint does not fit.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    with stop_signals() as stop, errors_met_by_all():
        with errors_met_by_all(InputError):
            run = set_up(config)
        record = Record(run.accelerator, run.out, run.progress.step, run.total_steps, config.data.trace)
        meter = Meter()
        steps = range(run.progress.step, run.total_steps)
        loader = training_loader(
            run.batches,
            steps,
            config.data.num_workers,
            config.data.prefetch,
            pin_memory=run.accelerator.device.type == "cuda",
        )
        loader = fetched_ahead(loader, run.batches, steps, config.data.num_workers * config.data.prefetch)
        try:
            for batch in meter.waiting(loader):
                meter.add(train_step(run, batch, stop), config.data.batch_size)
                after_step(run, record, meter, batch)
                if stop.agreed:
                    save(run)
                    if run.accelerator.is_main_process:
                        say(f"stopped by a signal after step {run.progress.step}; the same command goes on from there")
                    break
        finally:
            record.close()
        tear_down(run)
    return run.progress


def train_step(run: Training, batch: Batch, stop: StopRequest) -> dict[str, Tensor]:
    """Do one optimizer step and give its loss terms on this rank, each a scalar. Collective: ALL ranks call it."""
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
    totals["grad_norm"] = norm.detach()
    if agree(run, batch, totals, stop):
        step_optimizer(run)
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    return totals


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
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.config.optim, run.progress.step, run.total_steps)
    run.optimizer.step()
    if run.accelerator.optimizer_step_was_skipped:  # fp16's scale was too large and is halved now.
        run.progress.skipped += 1
    elif run.learner.average is not None:
        run.learner.average.update(run.progress.step - run.progress.skipped)


def agree(run: Training, batch: Batch, values: dict[str, Tensor], stop: StopRequest) -> bool:
    """Let all ranks stop at the same step, and tell whether this one's gradients are fit to be followed.

    Collective: ALL ranks call it, with their own scalar `values`.

    Raises:
        RunError: a loss or gradient is not finite and the configuration says to stop, or was so too often.
    """
    # In fp16 gradients overflow now and then; the loss scaling sees to those itself.
    watched = ("loss",) if run.learner.scaler is not None else ("loss", "grad_norm")
    broken = ~torch.stack([values[name].float() for name in watched]).isfinite().all()
    flags = torch.stack([broken, torch.tensor(stop.asked, device=broken.device)]).int()
    totals = run.accelerator.reduce(flags, reduction="sum")
    assert isinstance(totals, Tensor)
    bad_ranks, stop_ranks = totals.tolist()
    stop.agreed = stop_ranks > 0
    if bad_ranks:
        refuse_nonfinite(run, batch, values)
    return not bad_ranks


def refuse_nonfinite(run: Training, batch: Batch, values: dict[str, Tensor]) -> None:
    """Count a batch that cannot be learnt from, or stop the run. Collective: ALL ranks call it, with scalar `values`.

    Raises:
        RunError: the configuration says to stop, or it happened too often.
    """
    progress, config = run.progress, run.config.run
    keys = ", ".join(global_keys(run, batch))
    found = f"loss {values['loss'].item():g} and gradient norm {values['grad_norm'].item():g} on this rank"
    problem = f"step {progress.step + 1}: expected a finite loss and gradient, found {found}, with samples {keys}"
    if config.on_nonfinite == "stop" or progress.skipped >= config.max_skips:
        skipped = f" after {progress.skipped} skipped before (run.max_skips)" if progress.skipped else ""
        raise RunError(
            f"{problem}{skipped}; the weights are as before the step. Look at these samples, or lower --optim.lr "
            f"(now {run.config.optim.lr:g})"
        )
    progress.skipped += 1
    if run.accelerator.is_main_process:
        say(f"{problem}; left out, {progress.skipped} of at most {config.max_skips}")


def after_step(run: Training, record: Record, meter: Meter, batch: Batch) -> None:
    """Log, validate and save when it is time. Collective: ALL ranks call it."""
    config, step = run.config, run.progress.step
    per_epoch = run.batches.steps_per_epoch
    if config.data.trace:
        record.trace((step - 1) // per_epoch, step, global_keys(run, batch))
    record.advance(step)
    if step % config.run.log_every == 0 or step == run.total_steps:
        values = meter.read(run.accelerator)
        rate = run.optimizer.param_groups[0]["lr"]
        record.metrics("train", step, step / per_epoch, {**values, "lr": rate, "skipped": run.progress.skipped})
    last = step == run.total_steps
    if last or step % (config.run.validate_every or per_epoch) == 0:
        with meter.paused():
            validate_and_keep_best(run, record)
    if last or step % (config.run.checkpoint_every or per_epoch) == 0:
        with meter.paused():
            save(run)


def validate_and_keep_best(run: Training, record: Record) -> None:
    """Validate, and keep the model if its mean PSNR is the best so far. Collective: ALL ranks call it.

    Where an average of the weights is kept, it is the model.
    """
    learner, config, step = run.learner, run.config.run, run.progress.step
    with learner.average.swapped_in() if learner.average is not None else nullcontext():
        learner.network.eval()
        found = validate(
            run.accelerator, learner.network, run.validation, config.validation_batch_size, config.pictures
        )
        learner.network.train()
        record.metrics("validation", step, step / run.batches.steps_per_epoch, found.figures)
        record.pictures(step, found.pictures)
        psnr = found.figures["psnr_slice"]
        if not math.isfinite(psnr):
            if run.accelerator.is_main_process:
                say(f"validation at step {step} has no finite PSNR; the best model stays what it was")
        elif run.progress.best_psnr is None or psnr > run.progress.best_psnr:
            run.progress.best_psnr, run.progress.best_step = psnr, step
            keep_best(run, found.figures)


def keep_best(run: Training, figures: dict[str, float | int]) -> None:
    """Write the present weights as the best model. Collective: ALL ranks call it."""
    weights = run.learner.weights()
    manifest, step = run.validation.manifest, run.progress.step
    record = {
        "step": step,
        "epoch": step / run.batches.steps_per_epoch,
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


def global_keys(run: Training, batch: Batch) -> list[str]:
    """Give the keys of the whole global batch, in order. Collective: ALL ranks call it."""
    samples = run.accelerator.gather(batch.samples.to(run.accelerator.device))
    assert isinstance(samples, Tensor)
    return [run.batches.split.key(sample) for sample in samples.tolist()]
