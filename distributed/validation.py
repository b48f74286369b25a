"""Validation: every sample of a split once, over all processes, the model beside cubic interpolation."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from upfield.distributed.reader import every_sample
from upfield.model.quality import psnr_slice, ssim_slice
from upfield.sharding.errors import RunError
from upfield.sharding.shardset import ShardSplit

METRICS = {"psnr_slice": psnr_slice, "ssim_slice": ssim_slice}


@torch.inference_mode()
def validate(
    accelerator: Accelerator, restore: Callable[[Tensor], Tensor], split: ShardSplit, batch_size: int
) -> dict[str, float | int]:
    """Measure a network on a split. Collective: ALL ranks call it.

    Args:
        accelerator: the process group and the precision.
        restore: maps `(N, 1 + 2*context, H, W)` to `(N, 1, H, W)`; the unwrapped network in evaluation mode, so that
            ranks with unequal shares do not wait for one another inside it.
        split: what to measure on.
        batch_size: slices per process.

    Returns:
        Mean over all slices of each metric, for the model and, prefixed `cubic_`, for the interpolated input. Slices
        without any error have no PSNR; they are left out of its mean and counted.

    Raises:
        RunError: the network gives NaN.
    """
    names = [*METRICS, *(f"cubic_{name}" for name in METRICS)]
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=accelerator.device)
    broken = torch.zeros(1, device=accelerator.device)
    context = split.manifest.context
    for batch in every_sample(split, batch_size, accelerator.process_index, accelerator.num_processes):
        low, high = batch.low.to(accelerator.device).float(), batch.high.to(accelerator.device).float()
        with accelerator.autocast():
            restored = restore(low).float().clamp(0, 1)
        broken += restored.isnan().any(dim=(1, 2, 3)).sum()
        # The low-field channel is the cubic interpolation of the scan.
        pairs = (restored, low[:, context : context + 1])
        values = [metric(image, high) for image in pairs for metric in METRICS.values()]
        for row, value in zip(sums, values, strict=True):
            finite = value.isfinite()
            row += torch.stack([value[finite].double().sum(), finite.sum()])
    totals, all_broken = accelerator.reduce(sums, reduction="sum"), accelerator.reduce(broken, reduction="sum")
    assert isinstance(totals, Tensor)
    assert isinstance(all_broken, Tensor)
    if num_broken := int(all_broken.item()):
        raise RunError(
            f"validation: expected finite slices from the network, found NaN in {num_broken} of {split.num_samples}; "
            "the weights have diverged: go on from an earlier checkpoint with a lower --optim.lr"
        )
    means = (totals[:, 0] / totals[:, 1]).tolist()
    perfect = split.num_samples - int(totals[0, 1])
    return dict(zip(names, means, strict=True)) | {"slices": split.num_samples, "perfect_slices": perfect}
