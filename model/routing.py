"""Task-adaptive routing (Yang et al., MICCAI 2024, arXiv 2405.19769): instruction, spatial experts, channel scaling.

The gating is noisy top-k of Shazeer et al. 2017 (arXiv 1701.06538), section 4 and appendix A.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INSTRUCTION_DIM = 256
TOP_K = 2
NOISE_FLOOR = 0.01
# The published mixture is log(sum of g * exp(y)), with 2.22e-16 where the float32 sum underflows to zero.
UNDERFLOW_LOG = math.log(2.0**-149)
UNDERFLOW_VALUE = math.log(2.22e-16)


class InstructionNetwork(nn.Module):
    """Reads the whole image and mixes a routing instruction from a learned dictionary."""

    def __init__(self, in_channels: int, num_tokens: int) -> None:
        """Make the condition network and a dictionary of `num_tokens` entries."""
        super().__init__()
        shapes = [(in_channels, 64, 3), (64, 64, 3), (64, 64, 1), (64, 64, 1), (64, 32, 1)]
        layers: list[nn.Module] = []
        for source, target, size in shapes:
            layers += [nn.Conv2d(source, target, kernel_size=size, stride=size), nn.LeakyReLU(0.1)]
        self.CondNet = nn.Sequential(*layers[:-1])
        self.lastOut = nn.Linear(32, num_tokens)
        self.dictionary = nn.Parameter(torch.randn(num_tokens, INSTRUCTION_DIM))

    def forward(self, image: Tensor) -> Tensor:
        """Give the instruction `(B, 256)` of `image` `(B, S, H, W)`."""
        condition = self.CondNet(image).mean(dim=(-2, -1))
        alpha = self.lastOut(condition).softmax(dim=-1)
        return F.gelu(alpha @ self.dictionary)


class Gates(NamedTuple):
    """What the gating of pixels gives."""

    log_gates: Tensor
    """`(..., E)`: log of the gates; minus infinity for all but the two largest logits."""
    usage: Tensor
    """`(2, E)`: of each expert, its importance (the sum of its gates) and its load (the pixels it serves)."""


def top_k_log_gates(logits: Tensor) -> Tensor:
    """Give the log of the softmax of the two largest of `logits` (shape `(..., E)`), minus infinity elsewhere."""
    values, experts = logits.topk(TOP_K, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, experts, values.log_softmax(dim=-1))


def clean_gates(logits: Tensor) -> Gates:
    """Gate logits of shape `(..., E)` without noise, as in evaluation: the load is a count."""
    log_gates = top_k_log_gates(logits)
    gates = log_gates.exp()
    return Gates(log_gates, _over_pixels(gates, gates > 0))


def noisy_gates(clean: Tensor, noise_scale: Tensor, noise: Tensor) -> Gates:
    """Gate with noise, and estimate the load smoothly, so that the load loss has a gradient (Shazeer, eq. 3-5, 8-10).

    Args:
        clean: logits `(..., E)`.
        noise_scale: standard deviation of each logit's noise, `(..., E)`, positive.
        noise: standard normal, `(..., E)`.
    """
    noisy = clean + noise_scale * noise
    if clean.shape[-1] == TOP_K:
        # With as many experts as gates there is no logit to displace: each one is always taken.
        return clean_gates(noisy)
    log_gates = top_k_log_gates(noisy)
    threshold_out, threshold_in = noisy.topk(TOP_K + 1, dim=-1).values[..., TOP_K - 1 :].split(1, dim=-1)
    threshold = torch.where(noisy > threshold_in, threshold_in, threshold_out)
    served = torch.special.ndtr((clean - threshold) / noise_scale)
    return Gates(log_gates, _over_pixels(log_gates.exp(), served))


def _over_pixels(gates: Tensor, served: Tensor) -> Tensor:
    return torch.stack([gates.flatten(0, -2).sum(dim=0), served.to(gates).flatten(0, -2).sum(dim=0)])


def load_loss(usage: Tensor) -> Tensor:
    """Give cv2(importance) + cv2(load), summed over levels: a scalar (Shazeer, eq. 6-7 and 11).

    cv2 is the squared coefficient of variation over the experts, with the unbiased variance.

    Args:
        usage: `(..., 2, E)`.
    """
    return (usage.var(dim=-1) / (usage.mean(dim=-1).square() + 1e-10)).sum()


def log_mixture(outputs: Sequence[Tensor], log_gates: Tensor) -> Tensor:
    """Combine experts in log space: log of the sum over experts of gate * exp(output) (the mixture of Yang et al.).

    As a log-sum-exp it stays finite in any precision; their exponential exceeds half precision above 11.

    Args:
        outputs: E tensors of shape `(..., C)`.
        log_gates: `(..., E)`.

    Returns:
        `(..., C)` float32, or float64 where the outputs are.
    """
    dtype = torch.promote_types(outputs[0].dtype, torch.float32)
    terms = [
        output.to(dtype) + gate.unsqueeze(-1)
        for output, gate in zip(outputs, log_gates.to(dtype).unbind(-1), strict=True)
    ]
    mixed = torch.stack(terms).logsumexp(dim=0)
    return torch.where(mixed < UNDERFLOW_LOG, UNDERFLOW_VALUE, mixed)


class Expert(nn.Module):
    """A two-layer perceptron per pixel."""

    def __init__(self, channels: int, hidden: int) -> None:
        """Make the two layers."""
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` of shape `(..., C)`."""
        return self.fc2(F.gelu(self.fc1(x)))


class SpatialMixture(nn.Module):
    """Experts per pixel. All of them are evaluated: no parameter is ever without gradient, and the graph is static."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, num_experts: int, expansion: float) -> None:
        """Make the experts and the gating matrices; `mean` and `std` are kept for published checkpoints."""
        super().__init__()
        self.experts = nn.ModuleList(Expert(channels, int(channels * expansion)) for _ in range(num_experts))
        # Small and not zero: equal logits would send every pixel to the first two experts.
        self.w_gate = nn.Parameter(torch.randn(2 * channels, num_experts) * 0.02)
        self.w_noise = nn.Parameter(torch.zeros(2 * channels, num_experts))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, x: Tensor, instruction: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mix the experts at each pixel.

        Args:
            x: `(B, P, C)`, P pixels.
            instruction: `(B, C)`, the same for all pixels of an image.
            noise: standard normal `(B, P, E)` in training, None in evaluation.

        Returns:
            The mixture `(B, P, C)` float32, and in training the experts' usage `(2, E)`.
        """
        if noise is None:
            log_gates, usage = top_k_log_gates(self._project(x, instruction, self.w_gate)), None
        else:
            weight = torch.cat([self.w_gate, self.w_noise], dim=1)
            clean, raw_scale = self._project(x, instruction, weight).chunk(2, dim=-1)
            log_gates, usage = noisy_gates(clean, F.softplus(raw_scale) + NOISE_FLOOR, noise)
        return log_mixture([expert(x) for expert in self.experts], log_gates), usage

    @staticmethod
    def _project(x: Tensor, instruction: Tensor, weight: Tensor) -> Tensor:
        """Give [x ; instruction] @ weight, `(B, P, columns)`, without repeating the instruction at every pixel."""
        # Gating decides which experts serve a pixel: it stays in float32 under autocast.
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            x, instruction, weight = (tensor.to(dtype) for tensor in (x, instruction, weight))
            from_pixel, from_image = weight.chunk(2, dim=0)
            return x @ from_pixel + (instruction @ from_image).unsqueeze(1)


class SpatialRouting(nn.Module):
    """Route each pixel of an encoder level to experts, as the instruction says."""

    def __init__(self, channels: int, num_experts: int, expansion: float) -> None:
        """Make the projection of the instruction and the mixture."""
        super().__init__()
        self.fc = nn.Linear(INSTRUCTION_DIM, channels)
        self.moe = SpatialMixture(channels, num_experts, expansion)

    def forward(self, x: Tensor, instruction: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Route `x` `(B, C, H, W)` by `instruction` `(B, 256)`; `noise` `(B, H*W, E)` adds the usage `(2, E)`."""
        B, C, H, W = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(B, H * W, C)
        mixed, usage = self.moe(pixels, self.fc(instruction), noise)
        routed = pixels + mixed.to(x)
        return routed.reshape(B, H, W, C).permute(0, 3, 1, 2), usage


class ChannelRouting(nn.Module):
    """Scale and shift channels, as far as the instruction opens each of them."""

    def __init__(self, channels: int) -> None:
        """Make the gate; scale and shift start at zero, so that the module starts as the identity."""
        super().__init__()
        self.fc = nn.Linear(INSTRUCTION_DIM, channels)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, instruction: Tensor) -> Tensor:
        """Transform `x` `(B, C, H, W)` by `instruction` `(B, 256)`."""
        gate = self.fc(instruction).sigmoid()[:, :, None, None]
        # One scale and one shift per channel and image; added to x and not to 1, beside which bf16 loses small scales.
        return x + torch.addcmul((self.beta * gate).to(x), x, (self.gamma * gate).to(x))
