"""Image quality per slice. Validation and evaluation use these same definitions."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

DATA_RANGE = 1.0


def psnr_slice(restored: Tensor, high: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each whole slice with data range 1.

    Args:
        restored: `(N, 1, H, W)` in [0, 1].
        high: `(N, 1, H, W)` in [0, 1].

    Returns:
        `(N,)` in dB, infinite for equal slices.
    """
    error = (restored.float() - high.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(DATA_RANGE**2 / error)


def ssim_slice(restored: Tensor, high: Tensor) -> Tensor:
    """Compute the structural similarity of each slice: 11 x 11 Gaussian window, sigma 1.5, data range 1 (torchmetrics).

    Args:
        restored: `(N, 1, H, W)` in [0, 1], H and W at least 11.
        high: `(N, 1, H, W)` in [0, 1].

    Returns:
        `(N,)`, at most 1.
    """
    values = structural_similarity_index_measure(
        restored.float(),
        high.float(),
        gaussian_kernel=True,
        kernel_size=11,
        sigma=1.5,
        data_range=DATA_RANGE,
        reduction="none",
    )
    assert isinstance(values, Tensor)
    return values.reshape(-1)  # torchmetrics returns a scalar if there is only one slice


def mae_slice(restored: Tensor, high: Tensor) -> Tensor:
    """Compute the mean absolute error `(N,)` of each slice of `restored` and `high`, both `(N, 1, H, W)`."""
    return (restored.float() - high.float()).abs().mean(dim=(1, 2, 3))


METRICS = {"psnr_slice": psnr_slice, "ssim_slice": ssim_slice, "mae_slice": mae_slice}
