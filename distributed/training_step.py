"""One optimizer step, which all ranks take or skip together."""

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
    """Names of the values."""
    rows: tuple[tuple[float, ...], ...]
    """Per rank, the value of each name."""

    def means(self) -> dict[str, float]:
        """Return the mean over ranks of each value."""
        return {name: sum(values) / len(values) for name, *values in zip(self.names, *self.rows, strict=True)}

    def bad_ranks(self, names: Iterable[str]) -> list[int]:
        """Return the ranks on which one of these values is not finite."""
        columns = [self.names.index(name) for name in names]
        return [rank for rank, row in enumerate(self.rows) if not all(math.isfinite(row[i]) for i in columns)]


def train_step(run: TrainingRun, batch: Batch, stop: StopRequest) -> dict[str, float]:
    """Take one optimizer step, or skip the batch if loss or gradient is not finite. Collective: ALL ranks call it.

    Returns:
        Loss terms and gradient norm, means over all ranks; empty if the batch was skipped.

    Raises:
        DivergedError: the batch may not be skipped.
    """
    values = gather_values(run, accumulate_gradients(run, batch), stop)
    # In fp16 gradients overflow now and then, and the loss scaler handles that.
    watched = ("loss",) if run.learner.scaler is not None else ("loss", "grad_norm")
    if values.bad_ranks(watched):
        skip_batch(run, batch, values)
        terms = {}
    else:
        update_weights(run)
        # In fp16 the norm is infinite if the loss scale was too large.
        terms = {name: value for name, value in values.means().items() if math.isfinite(value)}
    run.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    return terms


def accumulate_gradients(run: TrainingRun, batch: Batch) -> dict[str, Tensor]:
    """Compute the gradients of a batch, a micro-batch at a time. Collective: ALL ranks call it.

    Returns:
        Scalars on the device: the loss and its terms on this rank's samples, and the norm of the whole gradient.
    """
    accelerator, config = run.accelerator, run.config
    parts = batch.split(config.data.micro_batch or len(batch.samples))
    totals: dict[str, Tensor] = {}
    for part in parts:
        # Gradients are summed over the processes once, with the last part.
        with nullcontext() if part is parts[-1] else accelerator.no_sync(run.wrapped):
            loss, terms = part_loss(run, part)
            weight = len(part.samples) / len(batch.samples)
            accelerator.backward(weight * loss)
        for name, value in ({"loss": loss.detach()} | terms).items():
            totals[name] = totals.get(name, 0) + weight * value
    # An infinite limit only measures.
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), config.optim.clip_norm or math.inf)
    assert norm is not None
    # If weights are split, each process holds its part of the norm.
    totals["grad_norm"] = (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()
    return totals


def part_loss(run: TrainingRun, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of a part of a batch, a scalar, and its terms. Collective: ALL ranks call it."""
    device, config = run.accelerator.device, run.config
    low, high = (tensor.to(device, non_blocking=True).float() for tensor in (part.low, part.high))
    key = (config.run.seed, run.progress.step)
    noise = draw_gating_noise(run.learner.network.config, (low.shape[-2], low.shape[-1]), key, part.samples, device)
    restored, load_loss = run.wrapped(low, noise)
    return restoration_loss(restored, high, load_loss, config.loss)


def gather_values(run: TrainingRun, values: dict[str, Tensor], stop: StopRequest) -> StepValues:
    """Share values and requests to stop, so that all ranks stop at the same step. Collective: ALL ranks call it.

    Args:
        run: the run.
        values: scalars of this rank.
        stop: whether this rank was asked to stop; on return, whether any was.
    """
    asked = torch.tensor(float(stop.asked), device=run.accelerator.device)
    own = torch.stack([asked, *(value.float() for value in values.values())])
    gathered = run.accelerator.gather(own[None])
    assert isinstance(gathered, Tensor)
    rows = gathered.tolist()
    stop.agreed = any(row[0] for row in rows)
    return StepValues(tuple(values), tuple(tuple(row[1:]) for row in rows))


def update_weights(run: TrainingRun) -> None:
    """Step the optimizer at the step's learning rate, then update the average of the weights."""
    progress = run.progress
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.config.optim, progress.updates, run.total_steps)
    run.optimizer.step()
    if run.accelerator.optimizer_step_was_skipped:  # The scale of fp16 was too large and is now halved.
        progress.overflows += 1
    elif run.learner.average is not None:
        run.learner.average.update(progress.updates)


def skip_batch(run: TrainingRun, batch: Batch, values: StepValues) -> None:
    """Skip a batch whose loss or gradient is not finite, or stop the run. Collective: ALL ranks call it.

    Raises:
        DivergedError: the configuration says to stop, or enough batches were skipped; the weights are unchanged.
    """
    progress, config = run.progress, run.config.run
    problem = describe_problem(run, batch, values)
    if config.on_nonfinite == "stop" or progress.skipped >= config.max_skips:
        before = f", after {progress.skipped} skipped batches (run.max_skips)" if config.on_nonfinite == "skip" else ""
        raise DivergedError(
            f"{problem}{before}. The weights are as before the step: check the shards of these samples with upfield "
            f"verify, or lower --optim.lr (now {run.config.optim.lr:g})."
        )
    progress.skipped += 1
    if (scaler := run.learner.scaler) is not None:
        # It unscaled these gradients for their norm, and refuses to unscale others before an update.
        scaler.update(scaler.get_scale())
    if run.accelerator.is_main_process:
        say(f"{problem}; batch skipped, {progress.skipped} of at most {config.max_skips}")


def describe_problem(run: TrainingRun, batch: Batch, values: StepValues) -> str:
    """Return a message that names the step, its values and the suspect samples. Collective: ALL ranks call it."""
    # All ranks share the gradient, the load loss and hence the loss. The other terms belong to a rank's own samples.
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
