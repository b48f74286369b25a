"""Task-adaptive routing (Yang et al., MICCAI 2024, arXiv 2405.19769): instruction, spatial and channel routing.

The gating is the noisy top-k gating of Shazeer et al. 2017 (arXiv 1701.06538), section 4 and appendix A.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfield.model.blocks import ROW_MULTIPLE, DeviceDependent, next_multiple

INSTRUCTION_DIM = 256
TOP_K = 2
NOISE_FLOOR = 0.01
# The published mixture is log(sum of g * exp(y)). If this float32 sum underflows to zero, it is replaced by 2.22e-16.
UNDERFLOW_LOG = math.log(2.0**-149)
UNDERFLOW_VALUE = math.log(2.22e-16)


class InstructionNetwork(nn.Module):
    """Computes a routing instruction for an image: a mixture of the tokens of a learned dictionary."""

    def __init__(self, in_channels: int, num_tokens: int) -> None:
        """Create the condition network and a dictionary of `num_tokens` tokens."""
        super().__init__()
        shapes = [(in_channels, 64, 3), (64, 64, 3), (64, 64, 1), (64, 64, 1), (64, 32, 1)]
        layers: list[nn.Module] = []
        for source, target, size in shapes:
            layers += [nn.Conv2d(source, target, kernel_size=size, stride=size), nn.LeakyReLU(0.1)]
        self.CondNet = nn.Sequential(*layers[:-1])
        self.lastOut = nn.Linear(32, num_tokens)
        self.dictionary = nn.Parameter(torch.randn(num_tokens, INSTRUCTION_DIM))

    def forward(self, image: Tensor) -> Tensor:
        """Return the instruction `(B, 256)` for `image` `(B, S, H, W)`."""
        condition = self.CondNet(image).mean(dim=(-2, -1))
        alpha = self.lastOut(condition).softmax(dim=-1)
        return F.gelu(alpha @ self.dictionary)


class Gates(NamedTuple):
    """The gates of all pixels, and the resulting usage of each expert."""

    log_gates: Tensor
    """`(..., E)`: log of the gates, minus infinity for all but the two largest logits."""
    usage: Tensor
    """`(2, E)`: each expert's importance (the sum of its gates) and load (the number of pixels routed to it)."""


def descending_ranks(logits: Tensor) -> Tensor:
    """Return the rank `(..., E)` of each of `logits` `(..., E)`: 0 for the largest one. The first of equal logits wins.

    For a few experts, comparing all pairs is much faster on a GPU than `topk`, which starts a block of threads for each
    pixel. Unlike `topk`, it also decides ties in the same way every time.
    """
    this, other = logits.unsqueeze(-1), logits.unsqueeze(-2)
    E = logits.shape[-1]
    other_is_first = torch.ones(E, E, dtype=torch.bool, device=logits.device).tril(-1)
    return ((other > this) | ((other == this) & other_is_first)).sum(dim=-1)


def at_rank(logits: Tensor, ranks: Tensor, rank: int) -> Tensor:
    """Return the one of `logits` `(..., E)` that has this rank: `(..., 1)`."""
    return torch.where(ranks == rank, logits, 0).sum(dim=-1, keepdim=True)


def top_k_log_gates(logits: Tensor, ranks: Tensor | None = None) -> Tensor:
    """Compute the log-softmax `(..., E)` over the two largest of `logits` `(..., E)`, with minus infinity elsewhere.

    Args:
        logits: `(..., E)`.
        ranks: `descending_ranks(logits)`; None means to use `topk`, which is faster on a CPU.
    """
    if ranks is not None:
        return logits.masked_fill(ranks >= TOP_K, -torch.inf).log_softmax(dim=-1)
    values, experts = logits.topk(TOP_K, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, experts, values.log_softmax(dim=-1))


def clean_gates(logits: Tensor) -> Gates:
    """Compute gates from logits `(..., E)` without noise, as in evaluation. The load is then a count of pixels."""
    log_gates = top_k_log_gates(logits)
    gates = log_gates.exp()
    return Gates(log_gates, _over_pixels(gates, gates > 0))


def noisy_gates(clean: Tensor, noise_scale: Tensor, noise: Tensor, by_rank: bool = False) -> Gates:
    """Compute gates with noise, and a smooth estimate of the load (Shazeer, eq. 3-5 and 8-10).

    The load loss has a gradient only if the load is smooth.

    Args:
        clean: logits `(..., E)` without noise.
        noise_scale: `(..., E)`, positive standard deviation of the noise of each logit.
        noise: `(..., E)`, standard normal.
        by_rank: whether to find the largest logits by `descending_ranks` instead of `topk`.
    """
    noisy = clean + noise_scale * noise
    if clean.shape[-1] == TOP_K:
        # With as many experts as gates, every expert is always chosen, and no further logit exists to set a threshold.
        return clean_gates(noisy)
    if by_rank:
        ranks = descending_ranks(noisy)
        log_gates = top_k_log_gates(noisy, ranks)
        chosen, threshold_out, threshold_in = ranks < TOP_K, *(at_rank(noisy, ranks, r) for r in (TOP_K - 1, TOP_K))
    else:
        log_gates = top_k_log_gates(noisy)
        threshold_out, threshold_in = noisy.topk(TOP_K + 1, dim=-1).values[..., TOP_K - 1 :].split(1, dim=-1)
        chosen = noisy > threshold_in
    threshold = torch.where(chosen, threshold_in, threshold_out)
    served = torch.special.ndtr((clean - threshold) / noise_scale)
    return Gates(log_gates, _over_pixels(log_gates.exp(), served))


def _over_pixels(gates: Tensor, served: Tensor) -> Tensor:
    return torch.stack([gates.flatten(0, -2).sum(dim=0), served.to(gates).flatten(0, -2).sum(dim=0)])


def load_loss(usage: Tensor) -> Tensor:
    """Compute cv2(importance) + cv2(load), summed over levels: a scalar (Shazeer, eq. 6-7 and 11).

    cv2 is the squared coefficient of variation over the experts, with the unbiased variance.

    Args:
        usage: `(..., 2, E)`, importance and load of each expert.
    """
    return (usage.var(dim=-1) / (usage.mean(dim=-1).square() + 1e-10)).sum()


def log_mixture(outputs: Sequence[Tensor], log_gates: Tensor) -> Tensor:
    """Mix experts in log space: the log of the sum over experts of gate * exp(output), as Yang et al. define it.

    A log-sum-exp stays finite in any precision, whereas exp overflows in half precision for outputs above 11.

    Args:
        outputs: outputs of the E experts, each `(..., C)`.
        log_gates: `(..., E)`, log of the gates.

    Returns:
        `(..., C)` float32, or float64 if the outputs are.
    """
    dtype = torch.promote_types(outputs[0].dtype, torch.float32)
    terms = [
        output.to(dtype) + gate.unsqueeze(-1)
        for output, gate in zip(outputs, log_gates.to(dtype).unbind(-1), strict=True)
    ]
    mixed = torch.stack(terms).logsumexp(dim=0)
    return torch.where(mixed < UNDERFLOW_LOG, UNDERFLOW_VALUE, mixed)


class Expert(nn.Module):
    """A two-layer perceptron that is applied to each pixel."""

    def __init__(self, channels: int, hidden: int) -> None:
        """Create the two layers, with `hidden` channels between them."""
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, padded: bool = False) -> Tensor:
        """Apply both layers to `x` `(..., C)`; the shape stays the same.

        Args:
            x: `(..., C)` pixels.
            padded: whether zeros pad the channels of `x` to a multiple of 8. Zeros then pad the hidden channels and the
                output too, because matrix products on a GPU are fast only if each row takes a multiple of 16 bytes.
        """
        if not padded:
            return self.fc2(F.gelu(self.fc1(x)))
        channels, hidden = (-count % ROW_MULTIPLE for count in self.fc1.weight.T.shape)
        inner = F.linear(x, F.pad(self.fc1.weight, (0, channels, 0, hidden)), F.pad(self.fc1.bias, (0, hidden)))
        weight, bias = F.pad(self.fc2.weight, (0, hidden, 0, channels)), F.pad(self.fc2.bias, (0, channels))
        return F.linear(F.gelu(inner), weight, bias)


class SpatialMixture(DeviceDependent):
    """A mixture of experts per pixel.

    Every expert is evaluated on every pixel, so that each parameter always has a gradient and the graph is static.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, num_experts: int, expansion: float) -> None:
        """Create the experts and the gating matrices. `mean` and `std` only match the published checkpoints."""
        super().__init__()
        self.experts = nn.ModuleList(Expert(channels, int(channels * expansion)) for _ in range(num_experts))
        # The weights are small but not zero, because equal logits would route every pixel to the first two experts.
        self.w_gate = nn.Parameter(torch.randn(2 * channels, num_experts) * 0.02)
        self.w_noise = nn.Parameter(torch.zeros(2 * channels, num_experts))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, x: Tensor, instruction: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mix the experts at each pixel.

        Args:
            x: `(B, P, C)` features of P pixels.
            instruction: `(B, C)`, shared by all pixels of an image.
            noise: `(B, P, E)`, standard normal in training; None in evaluation.

        Returns:
            The mixture `(B, P, C)` float32 and, in training, the experts' usage `(2, E)`.
        """
        on_gpu = self.takes_gpu_path(x)
        if noise is None:
            logits = self._project(x, instruction, self.w_gate)
            log_gates, usage = top_k_log_gates(logits, descending_ranks(logits) if on_gpu else None), None
        else:
            weight = torch.cat([self.w_gate, self.w_noise], dim=1)
            clean, raw_scale = self._project(x, instruction, weight).chunk(2, dim=-1)
            log_gates, usage = noisy_gates(clean, F.softplus(raw_scale) + NOISE_FLOOR, noise, by_rank=on_gpu)
        if not on_gpu:
            return log_mixture([expert(x) for expert in self.experts], log_gates), usage
        C = x.shape[-1]
        x = F.pad(x, (0, next_multiple(C, ROW_MULTIPLE) - C))
        return log_mixture([expert(x, padded=True) for expert in self.experts], log_gates)[..., :C], usage

    @staticmethod
    def _project(x: Tensor, instruction: Tensor, weight: Tensor) -> Tensor:
        """Compute [x ; instruction] @ weight, `(B, P, columns)`, without repeating the instruction for every pixel."""
        # Gating chooses the experts of each pixel, so it is computed in float32 even under autocast.
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            x, instruction, weight = (tensor.to(dtype) for tensor in (x, instruction, weight))
            from_pixel, from_image = weight.chunk(2, dim=0)
            return x @ from_pixel + (instruction @ from_image).unsqueeze(1)


class SpatialRouting(nn.Module):
    """Routes each pixel of an encoder level to two experts, depending on the pixel and on the instruction."""

    def __init__(self, channels: int, num_experts: int, expansion: float) -> None:
        """Create the projection of the instruction and the mixture of experts."""
        super().__init__()
        self.fc = nn.Linear(INSTRUCTION_DIM, channels)
        self.moe = SpatialMixture(channels, num_experts, expansion)

    def forward(self, x: Tensor, instruction: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Route each pixel to experts and add the mixture of their outputs.

        Args:
            x: `(B, C, H, W)` features.
            instruction: `(B, 256)`, one per image.
            noise: `(B, H*W, E)`, standard normal in training; None in evaluation.

        Returns:
            The features `(B, C, H, W)` and, in training, the experts' usage `(2, E)`.
        """
        B, C, H, W = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(B, H * W, C)
        mixed, usage = self.moe(pixels, self.fc(instruction), noise)
        routed = pixels + mixed.to(x)
        return routed.reshape(B, H, W, C).permute(0, 3, 1, 2), usage


class ChannelRouting(nn.Module):
    """Scales and shifts each channel, with a strength that the instruction determines."""

    def __init__(self, channels: int) -> None:
        """Create the gate. The scale and the shift start at zero, so that the module starts as the identity."""
        super().__init__()
        self.fc = nn.Linear(INSTRUCTION_DIM, channels)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, instruction: Tensor) -> Tensor:
        """Scale and shift the channels of `x` `(B, C, H, W)`, gated by `instruction` `(B, 256)`."""
        gate = self.fc(instruction).sigmoid()[:, :, None, None]
        # There is one scale and one shift per channel and image. The scaled x is added to x, because a factor of 1 +
        # scale would round small scales away in bf16.
        return x + torch.addcmul((self.beta * gate).to(x), x, (self.gamma * gate).to(x))
