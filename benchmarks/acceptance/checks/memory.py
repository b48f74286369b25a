"""The peak memory of a training step against the model of activations, and what `auto` chooses."""

import torch

from acceptance.report import Report
from acceptance.stepping import BareStep
from acceptance.tracing import WHOLE_SLICE
from upfield.model.activation_memory import USABLE, activation_bytes, equal_parts, plan_memory
from upfield.model.amir import AmirConfig, Checkpointing

CASES: tuple[tuple[Checkpointing, int], ...] = (("none", 16), ("selective", 32), ("full", 32))
BATCHES = (4, 8, 16, 32, 64, 128)
# `auto` trusts the model up to this share of the memory, so the peak may exceed it by the inverse.
LOWEST, HIGHEST = 0.7, 1 / USABLE


def run(report: Report) -> None:
    """Compare peaks with the model, then try the largest batches that `auto` accepts."""
    if not report.on_gpu:
        config, size = AmirConfig.preset("tiny"), (48, 40)
        for checkpointing, batch in CASES:
            step = BareStep(report.device, config, batch // 16, size)
            step.network.set_checkpointing(checkpointing)
            report.expect(f"a step with {checkpointing} is finite", bool(step().isfinite()))
        report.needs_gpu("peak memory of none at 16, selective at 32 and full at 32 slices, and what `auto` chooses")
        return
    config, size = AmirConfig.preset("official"), WHOLE_SLICE
    for checkpointing, batch in CASES:
        ratio = measure_peak(report, config, size, checkpointing, batch)
        report.expect(
            f"the peak of {checkpointing} at batch {batch} is {LOWEST} to {HIGHEST} of the model's",
            LOWEST <= ratio <= HIGHEST,
            f"{ratio:.3f}",
        )
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    report.figure("free_gb", free / 1e9)
    plans = {batch: plan_memory(config, size, equal_parts(batch), 2, free) for batch in BATCHES}
    chosen = {str(batch): f"{plan.checkpointing} in passes of {plan.micro_batch}" for batch, plan in plans.items()}
    report.figure("auto_chooses", chosen)
    # The largest pass of each mode shows whether the choices fit.
    for checkpointing in dict.fromkeys(plan.checkpointing for plan in plans.values()):
        batch = max(plan.micro_batch for plan in plans.values() if plan.checkpointing == checkpointing)
        if (checkpointing, batch) not in CASES:
            ratio = measure_peak(report, config, size, checkpointing, batch)
            report.expect(f"what `auto` chooses fits: {checkpointing} at {batch}", ratio < float("inf"))


def measure_peak(
    report: Report, config: AmirConfig, size: tuple[int, int], checkpointing: Checkpointing, batch: int
) -> float:
    """Take steps, and return their peak of activations relative to the model's; infinite if the memory runs out."""
    name, expected = f"{checkpointing}_at_{batch}", activation_bytes(config, size, batch, 2, checkpointing)
    report.figure(f"{name}_model_gb", expected / 1e9)
    try:
        step = BareStep(report.device, config, batch, size)
        step.network.set_checkpointing(checkpointing)
        step()  # creates the moments of Adam
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError as error:
        report.expect(f"{checkpointing} at batch {batch} fits", False, str(error).splitlines()[0])
        return float("inf")
    finally:
        torch.cuda.empty_cache()
    peak = torch.cuda.max_memory_allocated()
    report.figure(f"{name}_peak_gb", peak / 1e9)
    report.figure(f"{name}_reserved_gb", torch.cuda.max_memory_reserved() / 1e9)
    ratio = (peak - held) / expected
    report.figure(f"{name}_activations_relative_to_model", ratio)
    return ratio
