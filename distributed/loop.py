"""The training loop: one step, one epoch boundary, one way out."""

import math

import torch
from torch import Tensor

from upfield.distributed.assembly import Training, set_up
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
from upfield.sharding.errors import RunError
from upfield.sharding.progress import say


def fit(config: TrainConfig) -> Progress:
    """Train, from the beginning or from the last checkpoint, to the end or to a signal. Collective: ALL ranks call it.

    SIGTERM and SIGUSR1 make all ranks save at the same step and return.

    Raises:
        InputError: the shard set, the configuration or a checkpoint does not fit.
        RunError: the loss is not finite.
    """
    run = set_up(config)
    record = Record(run.accelerator, run.out, run.progress.step, config.data.trace)
    meter = Meter()
    steps, num_workers = range(run.progress.step, run.total_steps), config.data.num_workers
    loader = training_loader(run.batches, steps, num_workers, pin_memory=run.accelerator.device.type == "cuda")
    loader = fetched_ahead(loader, run.batches, steps, num_workers)
    try:
        with stop_signals() as stop:
            for batch in meter.waiting(loader):
                losses = train_step(run, batch, stop)
                meter.add(losses, config.data.batch_size)
                after_step(run, record, meter, batch)
                if stop.agreed:
                    save(run)
                    if run.accelerator.is_main_process:
                        say(f"stopped by a signal after step {run.progress.step}; the same command goes on from there")
                    break
    finally:
        record.close()
    return run.progress


def train_step(run: Training, batch: Batch, stop: StopRequest) -> dict[str, Tensor]:
    """Do one optimizer step and give its loss terms on this rank, each a scalar. Collective: ALL ranks call it."""
    accelerator, config = run.accelerator, run.config
    low, high = (tensor.to(accelerator.device, non_blocking=True).float() for tensor in (batch.low, batch.high))
    key = (config.run.seed, run.progress.step)
    noise = gating_noise(run.network.config, (low.shape[-2], low.shape[-1]), key, batch.samples, accelerator.device)
    restored, load_loss = run.wrapped(low, noise)
    loss, terms = restoration_loss(restored, high, load_loss, config.loss)
    agree(run, batch, loss, stop)
    accelerator.backward(loss)
    if config.optim.clip_norm is not None:
        accelerator.clip_grad_norm_(run.network.parameters(), config.optim.clip_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config.optim, run.progress.step, run.total_steps)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    return {"loss": loss.detach(), **terms}


def agree(run: Training, batch: Batch, loss: Tensor, stop: StopRequest) -> None:
    """Let all ranks stop at the same step: for a signal after it, for a loss that is not finite before it steps.

    Collective: ALL ranks call it, with their own scalar `loss`.
    """
    flags = torch.stack([~loss.detach().isfinite(), torch.tensor(stop.asked, device=loss.device)]).int()
    totals = run.accelerator.reduce(flags, reduction="sum")
    assert isinstance(totals, Tensor)
    bad_ranks, stop_ranks = totals.tolist()
    stop.agreed = stop_ranks > 0
    if bad_ranks:
        keys = global_keys(run, batch)
        raise RunError(
            f"step {run.progress.step + 1}: expected a finite loss, found {loss.item()} on this rank and {bad_ranks} "
            f"of {run.accelerator.num_processes} ranks not finite, with samples {', '.join(keys)}; the weights are as "
            f"before the step. Look at these samples, or lower --optim.lr (now {run.config.optim.lr:g})"
        )


def after_step(run: Training, record: Record, meter: Meter, batch: Batch) -> None:
    """Log, validate and save when it is time. Collective: ALL ranks call it."""
    config, step = run.config, run.progress.step
    per_epoch = run.batches.steps_per_epoch
    if config.data.trace:
        record.trace((step - 1) // per_epoch, step, global_keys(run, batch))
    if step % config.run.log_every == 0 or step == run.total_steps:
        values = meter.read(run.accelerator)
        record.metrics("train", step, step / per_epoch, {**values, "lr": run.optimizer.param_groups[0]["lr"]})
    last = step == run.total_steps
    if last or step % (config.run.validate_every or per_epoch) == 0:
        with meter.paused():
            validate_and_keep_best(run, record)
    if last or step % (config.run.checkpoint_every or per_epoch) == 0:
        save(run)


def validate_and_keep_best(run: Training, record: Record) -> None:
    """Validate, and keep the model if its mean PSNR is the best so far. Collective: ALL ranks call it."""
    run.network.eval()
    found = validate(run.accelerator, run.network, run.validation, run.config.run.validation_batch_size)
    run.network.train()
    step, epoch = run.progress.step, run.progress.step / run.batches.steps_per_epoch
    record.metrics("validation", step, epoch, found)
    if not math.isfinite(found["psnr_slice"]):
        if run.accelerator.is_main_process:
            say(f"validation at step {step} has no finite PSNR; the best model stays what it was")
    elif run.progress.best_psnr is None or found["psnr_slice"] > run.progress.best_psnr:
        run.progress.best_psnr, run.progress.best_step = found["psnr_slice"], step
        if run.accelerator.is_main_process:
            manifest = run.validation.manifest
            described = {
                "step": step,
                "epoch": epoch,
                "validation": found,
                "data_sha256": manifest.data_sha256,
                "normalisation": manifest.normalisation,
                "context": manifest.context,
            }
            save_best(run.out, run.network, run.config, described)
    run.accelerator.wait_for_everyone()


def save(run: Training) -> None:
    """Write a checkpoint from the main process. Collective: ALL ranks call it."""
    if run.accelerator.is_main_process:
        save_checkpoint(run.out, run.network, run.optimizer, run.progress, run.config.run.keep_checkpoints)
    run.accelerator.wait_for_everyone()


def global_keys(run: Training, batch: Batch) -> list[str]:
    """Give the keys of the whole global batch, in order. Collective: ALL ranks call it."""
    samples = run.accelerator.gather(batch.samples.to(run.accelerator.device))
    assert isinstance(samples, Tensor)
    return [run.batches.split.key(sample) for sample in samples.tolist()]
