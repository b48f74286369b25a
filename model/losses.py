"""The training loss: how far the restored slice is from the true one, in the terms that are weighed, and the routing's.

SSIM (Wang et al. 2004) is evaluation's own; MS-SSIM (Wang et al. 2003) is torchmetrics', with the same window, 11 x 11
Gaussian of sigma 1.5, and data range 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from upfield.model.configuration import LossConfig
from upfield.model.quality import ssim_slice

CHARBONNIER_EPSILON = 1e-3
# Five scales, each half of the one before, and the coarsest must hold the window.
MS_SSIM_MIN_SIZE = 176
SSIM_MIN_SIZE = 11


def restoration_loss(
    restored: Tensor, high: Tensor, load_loss: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the loss and its terms, in float32 also under autocast.

    Args:
        restored: `(B, 1, H, W)`.
        high: `(B, 1, H, W)` in [0, 1].
        load_loss: scalar, the network's.
        config: the weights; terms of weight 0 are not computed.

    Returns:
        The scalar to minimise, and each unweighted term by name, for the log.

    Raises:
        ValueError: slices are too small for MS-SSIM.
    """
    weights = {name: getattr(config, f"{name}_weight") for name in TERMS}
    with torch.autocast(restored.device.type, enabled=False):
        restored, high = restored.float(), high.float()
        terms = {name: term(restored, high) for name, term in TERMS.items() if weights[name]}
        loss = config.load_weight * load_loss
        for name, value in terms.items():
            loss = loss + weights[name] * value
    return loss, {name: value.detach() for name, value in (terms | {"load": load_loss}).items()}


def charbonnier(restored: Tensor, high: Tensor) -> Tensor:
    """Give the mean of sqrt(d^2 + 1e-6) over the differences d, a smooth L1 (Lai et al., CVPR 2017): a scalar."""
    return ((restored - high).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def ssim_loss(restored: Tensor, high: Tensor) -> Tensor:
    """Give 1 - SSIM, averaged over slices: a scalar from 0 (shape `(B, 1, H, W)` each, at least 11 x 11)."""
    return 1 - ssim_slice(restored, high).mean()


def ms_ssim_loss(restored: Tensor, high: Tensor) -> Tensor:
    """Give 1 - MS-SSIM, averaged over slices: a scalar from 0 (shape `(B, 1, H, W)` each, at least 176 x 176).

    Each scale's similarity x enters as (x + 1) / 2: where slices are opposed it is negative, and its power undefined.

    Raises:
        ValueError: slices are smaller.
    """
    if min(restored.shape[-2:]) < MS_SSIM_MIN_SIZE:
        raise ValueError(
            f"loss.ms_ssim_weight: expected slices of at least {MS_SSIM_MIN_SIZE} x {MS_SSIM_MIN_SIZE}, found "
            f"{restored.shape[-2]} x {restored.shape[-1]}; use loss.ssim_weight"
        )
    return 1 - multiscale_structural_similarity_index_measure(
        restored, high, kernel_size=11, sigma=1.5, data_range=1.0, normalize="simple"
    )


def gradient_difference(restored: Tensor, high: Tensor) -> Tensor:
    """Give how much the sizes of the two images' gradients differ, a scalar (Mathieu et al., ICLR 2016, alpha 1).

    Args:
        restored: `(B, 1, H, W)`.
        high: `(B, 1, H, W)`.
    """
    across, down = ((restored.diff(dim=dim).abs() - high.diff(dim=dim).abs()).abs().mean() for dim in (-1, -2))
    return across + down


# Weight in the configuration -> height and width that its term needs at least.
LEAST_SIZES = {"ssim_weight": SSIM_MIN_SIZE, "ms_ssim_weight": MS_SSIM_MIN_SIZE}
# Name, as in the configuration's weights and in the log -> the term.
TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "charbonnier": charbonnier,
    "ssim": ssim_loss,
    "ms_ssim": ms_ssim_loss,
    "gradient": gradient_difference,
}
