"""One training step, which all ranks take or skip together."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from upfield.common.errors import DivergedError
from upfield.common.progress import say
from upfield.common.stop_signals import StopRequest
from upfield.distributed.gating_noise import draw_gating_noise
from upfield.distributed.learning_rate import learning_rate
from upfield.distributed.samples.reader import Batch
from upfield.distributed.training_run import TrainingRun
from upfield.model.losses import restoration_loss


@dataclass(frozen=True)
class StepValues:
    """Loss terms and gradient norm of a step, on every rank."""

    names: tuple[str, ...]
    """Names of the loss terms, the loss and the gradient norm."""
    rows: tuple[tuple[float, ...], ...]
    """Values on each rank, in the order of `names`."""

    def means(self) -> dict[str, float]:
        """Return the mean of each value over the ranks."""
        return {name: sum(values) / len(values) for name, *values in zip(self.names, *self.rows, strict=True)}

    def bad_ranks(self, names: Iterable[str]) -> list[int]:
        """Return the ranks on which any of the named values is not finite."""
        columns = [self.names.index(name) for name in names]
        return [rank for rank, row in enumerate(self.rows) if not all(math.isfinite(row[i]) for i in columns)]


def train_step(run: TrainingRun, batch: Batch, stop: StopRequest) -> dict[str, float]:
    """Take one optimizer step, or skip the batch if its loss or gradient is not finite. Collective: ALL ranks call it.

    Returns:
        Loss terms and gradient norm as means over all ranks, or an empty dictionary if the batch was skipped.

    Raises:
        DivergedError: the loss or the gradient is not finite, and the batch may not be skipped.
    """
    values = gather_values(run, accumulate_gradients(run, batch), stop)
    # In fp16, gradients overflow occasionally, and the loss scaler handles such overflows.
    watched = ("loss",) if run.learner.scaler is not None else ("loss", "grad_norm")
    if values.bad_ranks(watched):
        skip_batch(run, batch, values)
        terms = {}
    else:
        update_weights(run)
        # In fp16, the norm is infinite if the loss scale was too large.
        terms = {name: value for name, value in values.means().items() if math.isfinite(value)}
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    return terms


def accumulate_gradients(run: TrainingRun, batch: Batch) -> dict[str, Tensor]:
    """Compute the gradients of a batch, one micro-batch at a time. Collective: ALL ranks call it.

    Returns:
        Scalars on the device: the loss and its terms on this rank's samples, and the norm of the whole gradient.
    """
    accelerator, config = run.accelerator, run.config
    parts = batch.split(config.data.micro_batch or len(batch.samples))
    totals: dict[str, Tensor] = {}
    for part in parts:
        # The processes exchange gradients only once, together with the last part.
        with nullcontext() if part is parts[-1] else accelerator.no_sync(run.wrapped):
            loss, terms = part_loss(run, part)
            weight = len(part.samples) / len(batch.samples)
            accelerator.backward(weight * loss)
        for name, value in ({"loss": loss.detach()} | terms).items():
            totals[name] = totals.get(name, 0) + weight * value
    # With an infinite limit, the call measures the norm and clips nothing.
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), config.optim.clip_norm or math.inf)
    assert norm is not None
    # If the weights are split over processes, each process holds only its part of the norm.
    totals["grad_norm"] = (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
    return totals


def part_loss(run: TrainingRun, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the scalar loss of a part of a batch, and the terms of this loss. Collective: ALL ranks call it."""
    device, config = run.accelerator.device, run.config
    low, high = (tensor.to(device, non_blocking=True).float() for tensor in (part.low, part.high))
    key = (config.run.seed, run.progress.step)
    noise = draw_gating_noise(run.learner.network.config, (low.shape[-2], low.shape[-1]), key, part.samples, device)
    restored, load_loss = run.wrapped(low, noise)
    return restoration_loss(restored, high, load_loss, config.loss)


def gather_values(run: TrainingRun, values: dict[str, Tensor], stop: StopRequest) -> StepValues:
    """Gather values and stop requests of all ranks, so that all stop at the same step. Collective: ALL ranks call it.

    Args:
        run: run of this step.
        values: scalars of this rank, by name.
        stop: request of this rank; its field `agreed` is set if any rank was asked to stop.
    """
    asked = torch.tensor(float(stop.asked), device=run.accelerator.device)
    own = torch.stack([asked, *(value.float() for value in values.values())])
    gathered = run.accelerator.gather(own[None])
    assert isinstance(gathered, Tensor)
    rows = gathered.tolist()
    stop.agreed = any(row[0] for row in rows)
    return StepValues(tuple(values), tuple(tuple(row[1:]) for row in rows))


def update_weights(run: TrainingRun) -> None:
    """Step the optimizer with the learning rate of this step, then update the average of the weights."""
    progress = run.progress
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.config.optim, progress.updates, run.total_steps)
    run.optimizer.step()
    if run.accelerator.optimizer_step_was_skipped:  # The loss scale of fp16 was too large and is now halved.
        progress.overflows += 1
    elif run.learner.average is not None:
        run.learner.average.update(progress.updates)


def skip_batch(run: TrainingRun, batch: Batch, values: StepValues) -> None:
    """Skip a batch whose loss or gradient is not finite, or stop the run. Collective: ALL ranks call it.

    Raises:
        DivergedError: `on_nonfinite` is `stop`, or `max_skips` batches were already skipped. The weights are unchanged.
    """
    progress, config = run.progress, run.config.run
    problem = describe_problem(run, batch, values)
    if config.on_nonfinite == "stop" or progress.skipped >= config.max_skips:
        before = f", after {progress.skipped} skipped batches (run.max_skips)" if config.on_nonfinite == "skip" else ""
        raise DivergedError(
            f"{problem}{before}; the weights are unchanged. Check the shards of these samples with upfield "
            f"verify, or lower --optim.lr (now {run.config.optim.lr:g})."
        )
    progress.skipped += 1
    if (scaler := run.learner.scaler) is not None:
        # The scaler has unscaled these gradients to compute their norm. Without an update, it would refuse to
        # unscale the gradients of the next step.
        scaler.update(scaler.get_scale())
    if run.accelerator.is_main_process:
        say(f"{problem}; batch skipped, {progress.skipped} of at most {config.max_skips}")


def describe_problem(run: TrainingRun, batch: Batch, values: StepValues) -> str:
    """Return a message that names the step, its values and the suspect samples. Collective: ALL ranks call it."""
    # The gradient, the load loss and therefore the loss depend on all ranks. The other terms depend only on a rank's
    # own samples.
    own_terms = [name for name in values.names if name not in ("loss", "load", "grad_norm")]
    bad_ranks = values.bad_ranks(own_terms) or values.bad_ranks(values.names)
    keys = global_keys(run, batch)
    share = len(keys) // len(values.rows)
    suspects = [key for rank in bad_ranks for key in keys[rank * share : (rank + 1) * share]]
    row = dict(zip(values.names, values.rows[bad_ranks[0]], strict=True))
    return (
        f"step {run.progress.step + 1}: expected a finite loss and gradient, found loss {row['loss']:g} and gradient "
        f"norm {row['grad_norm']:g} with samples {', '.join(suspects)}"
    )


def global_keys(run: TrainingRun, batch: Batch) -> list[str]:
    """Return the keys of the whole global batch, in order. Collective: ALL ranks call it."""
    samples = run.accelerator.gather(batch.samples.to(run.accelerator.device))
    assert isinstance(samples, Tensor)
    return [run.batches.split.key(sample) for sample in samples.tolist()]
