"""The training loss: a weighted sum of distances between restored and true slices, plus the load loss of the routing.

SSIM (Wang et al. 2004) has the same definition as in evaluation. MS-SSIM (Wang et al. 2003) comes from torchmetrics,
with the same window, an 11 x 11 Gaussian of sigma 1.5, and data range 1.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from upfield.model.configuration import LossConfig
from upfield.model.numerics import ReflectionByIndex
from upfield.model.quality import ssim_slice

CHARBONNIER_EPSILON = 1e-3
# MS-SSIM has five scales, each half the size of the previous one, and the window must fit into the coarsest scale.
MS_SSIM_MIN_SIZE = 176
SSIM_MIN_SIZE = 11


def restoration_loss(
    restored: Tensor, high: Tensor, load_loss: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss and its terms, in float32 even under autocast.

    Args:
        restored: `(B, 1, H, W)`.
        high: `(B, 1, H, W)` in [0, 1].
        load_loss: scalar that the network returns.
        config: weights of the terms. Terms with weight 0 are not computed.

    Returns:
        The scalar to minimise, and each term by name, without its weight, for the log.

    Raises:
        ValueError: the slices are too small for MS-SSIM.
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
    """Compute the mean of sqrt(d^2 + 1e-6) over the differences d, a smooth L1 loss (Lai et al., CVPR 2017): a scalar.

    Args:
        restored: `(B, 1, H, W)`.
        high: `(B, 1, H, W)`.
    """
    return ((restored - high).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def ssim_loss(restored: Tensor, high: Tensor) -> Tensor:
    """Compute 1 - SSIM, averaged over slices: a scalar of at least 0.

    Args:
        restored: `(B, 1, H, W)`, H and W at least 11.
        high: `(B, 1, H, W)`.
    """
    with repeatable_padding():
        return 1 - ssim_slice(restored, high).mean()


def ms_ssim_loss(restored: Tensor, high: Tensor) -> Tensor:
    """Compute 1 - MS-SSIM, averaged over slices: a scalar of at least 0.

    The similarity x of each scale is replaced by (x + 1) / 2, because x is negative for inverted slices and its power
    is then undefined.

    Args:
        restored: `(B, 1, H, W)`, H and W at least 176.
        high: `(B, 1, H, W)`.

    Raises:
        ValueError: the slices are smaller than 176 x 176.
    """
    if min(restored.shape[-2:]) < MS_SSIM_MIN_SIZE:
        raise ValueError(
            f"loss.ms_ssim_weight: expected slices of at least {MS_SSIM_MIN_SIZE} x {MS_SSIM_MIN_SIZE}, found "
            f"{restored.shape[-2]} x {restored.shape[-1]}. Use loss.ssim_weight instead."
        )
    with repeatable_padding():
        return 1 - multiscale_structural_similarity_index_measure(
            restored, high, kernel_size=11, sigma=1.5, data_range=1.0, normalize="simple"
        )


def repeatable_padding() -> AbstractContextManager[object]:
    """Return a context in which padding by reflection has a deterministic gradient, if such gradients are requested."""
    return ReflectionByIndex() if torch.are_deterministic_algorithms_enabled() else nullcontext()


def gradient_difference(restored: Tensor, high: Tensor) -> Tensor:
    """Compute the mean absolute difference between gradient magnitudes: a scalar (Mathieu et al., ICLR 2016, alpha 1).

    Args:
        restored: `(B, 1, H, W)`.
        high: `(B, 1, H, W)`.
    """
    across, down = ((restored.diff(dim=dim).abs() - high.diff(dim=dim).abs()).abs().mean() for dim in (-1, -2))
    return across + down


# Name of a weight in the configuration -> minimum height and width of slices for the term of that weight.
LEAST_SIZES = {"ssim_weight": SSIM_MIN_SIZE, "ms_ssim_weight": MS_SSIM_MIN_SIZE}
# Name of a term in the log, and the prefix of its weight in the configuration -> function of the term.
TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "charbonnier": charbonnier,
    "ssim": ssim_loss,
    "ms_ssim": ms_ssim_loss,
    "gradient": gradient_difference,
}
