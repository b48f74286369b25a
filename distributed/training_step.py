"""One training step, which all ranks take or skip together.

The host never waits for a GPU inside a step, except to write a trace. A step queues all its work: the gradients, the
exchange of their values between the ranks, and an update of the weights, which the device itself leaves out if a value
is not finite. The host reads the values one step later, while the device computes the next gradients, and then counts,
logs or raises an error.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from upfield.common.errors import DivergedError
from upfield.common.progress import say
from upfield.common.stop_signals import StopReason, StopRequest
from upfield.distributed.gating_noise import draw_gating_noise
from upfield.distributed.learning_rate import learning_rate
from upfield.distributed.samples.reader import Batch
from upfield.distributed.training_run import TrainingRun
from upfield.model.losses import restoration_loss

# A lower loss scale would make gradients smaller than they are without a scale. If one is not finite even then, the
# scale is not the cause.
LEAST_LOSS_SCALE = 1.0


@dataclass(frozen=True)
class StepValues:
    """Loss terms and gradient norm of a step, on every rank."""

    names: tuple[str, ...]
    """Names of the loss terms, the loss, the gradient norm and the shares of the classes of samples."""
    rows: tuple[tuple[float, ...], ...]
    """Values on each rank, in the order of `names`."""

    def means(self) -> dict[str, float]:
        """Return the mean of each value over the ranks."""
        return {name: sum(values) / len(values) for name, *values in zip(self.names, *self.rows, strict=True)}

    def bad_ranks(self, names: Iterable[str]) -> list[int]:
        """Return the ranks on which any of the named values is not finite."""
        columns = [self.names.index(name) for name in names]
        return [rank for rank, row in enumerate(self.rows) if not all(math.isfinite(row[i]) for i in columns)]

    def overflowed(self) -> bool:
        """Return whether the gradient is not finite because the loss scale of fp16 was too large."""
        if "loss_scale" not in self.names or self.bad_ranks(("loss",)):
            return False
        scale = self.rows[0][self.names.index("loss_scale")]
        return bool(self.bad_ranks(("grad_norm",))) and scale >= LEAST_LOSS_SCALE


@dataclass(frozen=True)
class QueuedStep:
    """A step whose work is queued on the device, and whose values the host has not read yet."""

    samples: Tensor
    """`(N,)` int64, sample numbers of this rank."""
    names: tuple[str, ...]
    """Names of the columns of `rows` after the first one."""
    rows: Tensor
    """`(ranks, 1 + names)` float32 on the device: the rank's reason to stop, and its values."""
    copy: Tensor
    """`rows` on the CPU, valid after the event `copied`."""
    copied: torch.cuda.Event | None
    """Event after the copy from a GPU; None on a CPU."""

    def read(self) -> tuple[StopReason, StepValues]:
        """Wait for the values. Return the weightiest reason of any rank to stop, and the values of all ranks."""
        if self.copied is not None:
            self.copied.synchronize()
        rows = self.copy.tolist()
        reason = StopReason(int(max(row[0] for row in rows)))
        return reason, StepValues(self.names, tuple(tuple(row[1:]) for row in rows))

    def is_bad(self, *names: str) -> Tensor:
        """Return, as a scalar on the device, whether any of the named values is not finite on any rank."""
        columns = [1 + self.names.index(name) for name in names]
        # Select by slices, because a list of indices would have to be copied to the device.
        return torch.stack([~self.rows[:, column].isfinite().all() for column in columns]).any()


def train_step(run: TrainingRun, batch: Batch, stop: StopRequest, previous: QueuedStep | None) -> QueuedStep:
    """Queue one optimizer step, then settle the previous step before the weights change again.

    Collective: ALL ranks call it.

    Args:
        run: run of this step.
        batch: this rank's share of the global batch.
        stop: request of this rank; its field `agreed` is set if any rank was asked to stop before the previous step.
        previous: the previous step, unless it is settled.

    Raises:
        DivergedError: the loss or the gradient of the previous step is not finite, and its batch may not be skipped.
    """
    values = accumulate_gradients(run, batch)
    # `full` fills in the number on the device. A copy from the host would wait for the device.
    for name, share in run.batches.shares(batch.samples.numpy()).items():
        values[name] = torch.full((), share, device=run.accelerator.device)
    if (scaler := run.learner.scaler) is not None:
        values["loss_scale"] = scaler.scale(torch.ones((), device=run.accelerator.device))
    step = queue_values(run, batch.samples, values, stop)
    if previous is not None:
        settle_step(run, previous, stop)
    update_weights(run, step)
    run.learner.optimizer.zero_grad(set_to_none=True)
    run.progress.step += 1
    return step


def settle_step(run: TrainingRun, step: QueuedStep, stop: StopRequest) -> None:
    """Read the values of the latest step, count it, and update the average of the weights, or report that it failed.

    Collective: ALL ranks call it, after the step and before the weights change again.

    Raises:
        DivergedError: the loss or the gradient is not finite, and the batch may not be skipped.
    """
    progress = run.progress
    reason, values = step.read()
    stop.agreed = max(stop.agreed, reason)
    if values.overflowed():  # The loss scale of fp16 was too large and is now halved.
        progress.overflows += 1
    elif values.bad_ranks(("loss", "grad_norm")):
        skip_batch(run, step.samples, values)
        return
    elif run.learner.average is not None:
        run.learner.average.update(progress.updates - 1)
    progress.add_terms({name: value for name, value in values.means().items() if math.isfinite(value)})


def accumulate_gradients(run: TrainingRun, batch: Batch) -> dict[str, Tensor]:
    """Compute the gradients of a batch, one micro-batch at a time. Collective: ALL ranks call it.

    Returns:
        Scalars on the device: the loss and its terms on this rank's samples, and the norm of the whole gradient.
    """
    accelerator, config = run.accelerator, run.config
    parts = batch.split(run.progress.micro_batch)
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
    # Accelerate adds autocast to a network for data parallelism, but not to one whose weights are split.
    with run.accelerator.autocast():
        restored, load_loss = run.wrapped(low, noise)
    return restoration_loss(restored, high, load_loss, config.loss)


def queue_values(run: TrainingRun, samples: Tensor, values: dict[str, Tensor], stop: StopRequest) -> QueuedStep:
    """Gather values and stop requests of all ranks, so that all stop at the same step. Collective: ALL ranks call it.

    Args:
        run: run of this step.
        samples: `(N,)` sample numbers of this rank.
        values: scalars of this rank, by name.
        stop: request of this rank.
    """
    device = run.accelerator.device
    reason = torch.full((), float(stop.reason), device=device)
    own = torch.stack([reason, *(value.float() for value in values.values())])
    rows = run.accelerator.gather(own[None])
    assert isinstance(rows, Tensor)
    copy, copied = rows.to("cpu", non_blocking=True), None
    if device.type == "cuda":
        copied = torch.cuda.Event(blocking=True)
        copied.record()
    return QueuedStep(samples, tuple(values), rows, copy, copied)


def update_weights(run: TrainingRun, step: QueuedStep) -> None:
    """Step the optimizer with the learning rate of this step, unless a value of the step is not finite."""
    optimizer, scaler = run.learner.optimizer, run.learner.scaler
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run.config.optim, run.progress.updates, run.total_steps)
    # A fused Adam changes neither weights nor moments if this attribute, made for loss scalers, is 1.
    optimizer.found_inf = step.is_bad("loss", "grad_norm").float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    if scaler is not None:
        update_scale(scaler, keep=step.is_bad("loss"))


def update_scale(scaler: torch.amp.GradScaler, keep: Tensor) -> None:
    """Halve the loss scale of fp16 if a gradient overflowed, or double it after many steps without an overflow.

    Args:
        scaler: scaler that has unscaled the gradients of this step.
        keep: scalar on the device, whether to keep the scale because the loss itself is not finite.
    """
    one = torch.ones((), device=keep.device)
    before = scaler.scale(one)
    scaler.update()
    scaler.update(torch.where(keep, before, scaler.scale(one)))


def skip_batch(run: TrainingRun, samples: Tensor, values: StepValues) -> None:
    """Count a batch whose loss or gradient is not finite, or stop the run. Collective: ALL ranks call it.

    Args:
        run: run of the latest step, which did not change the weights.
        samples: `(N,)` sample numbers of this rank.
        values: values of the step.

    Raises:
        DivergedError: `on_nonfinite` is `stop`, or `max_skips` batches were already skipped.
    """
    progress, config = run.progress, run.config.run
    problem = describe_problem(run, samples, values)
    if config.on_nonfinite == "stop" or progress.skipped >= config.max_skips:
        before = f", after {progress.skipped} skipped batches (run.max_skips)" if config.on_nonfinite == "skip" else ""
        raise DivergedError(
            f"{problem}{before}; the weights are unchanged. Check the shards of these samples with upfield "
            f"verify, or lower --optim.lr (now {run.config.optim.lr:g})."
        )
    progress.skipped += 1
    if run.accelerator.is_main_process:
        say(f"{problem}; batch skipped, {progress.skipped} of at most {config.max_skips}")


def describe_problem(run: TrainingRun, samples: Tensor, values: StepValues) -> str:
    """Return a message that names the latest step, its values and the suspect samples.

    Collective: ALL ranks call it.

    Args:
        run: run of the step.
        samples: `(N,)` sample numbers of this rank.
        values: values of the step.
    """
    # The gradient, the load loss and therefore the loss depend on all ranks. The other terms depend only on a rank's
    # own samples.
    own_terms = [name for name in values.names if name not in ("loss", "load", "grad_norm", "loss_scale")]
    bad_ranks = values.bad_ranks(own_terms) or values.bad_ranks(values.names)
    keys = global_keys(run, samples)
    share = len(keys) // len(values.rows)
    suspects = [key for rank in bad_ranks for key in keys[rank * share : (rank + 1) * share]]
    row = dict(zip(values.names, values.rows[bad_ranks[0]], strict=True))
    return (
        f"step {run.progress.step}: expected a finite loss and gradient, found loss {row['loss']:zg} and gradient "
        f"norm {row['grad_norm']:g} with samples {', '.join(suspects)}"
    )


def global_keys(run: TrainingRun, samples: Tensor) -> list[str]:
    """Return the keys of the whole global batch, in order. Collective: ALL ranks call it.

    Args:
        run: run of the batch.
        samples: `(N,)` sample numbers of this rank.
    """
    gathered = run.accelerator.gather(samples.to(run.accelerator.device))
    assert isinstance(gathered, Tensor)
    return [run.batches.split.key(sample) for sample in gathered.tolist()]
