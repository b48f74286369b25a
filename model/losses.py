"""The training loss: how far the restored slice is from the true one, plus the routing's load loss."""

import torch.nn.functional as F
from torch import Tensor


def restoration_loss(
    restored: Tensor, high: Tensor, load_loss: Tensor, load_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the loss and its terms.

    Args:
        restored: `(B, 1, H, W)`.
        high: `(B, 1, H, W)` in [0, 1].
        load_loss: scalar, the network's.
        load_weight: its weight (0.001 in the published recipe).

    Returns:
        The scalar to minimise, and each unweighted term by name, for the log.
    """
    l1 = F.l1_loss(restored.float(), high.float())
    return l1 + load_weight * load_loss, {"l1": l1.detach(), "load": load_loss.detach()}
