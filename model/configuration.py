"""Sizes of the network and weights of the loss. This module does not import torch, so that `--help` answers at once."""

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal, Self

Checkpointing = Literal["none", "selective", "full"]
Kernels = Literal["auto", "on", "off"]
Preset = Literal["official", "report", "small", "tiny"]


@dataclass(frozen=True)
class AmirConfig:
    """The sizes of an AMIR network. The defaults are the published sizes (preset `official`)."""

    in_channels: int = 1
    """Number of input slices, which is odd: 1 + 2*context. The centre slice is restored."""
    out_channels: int = 1
    """Number of restored slices."""
    dim: int = 42
    """Number of channels at full resolution. Each of the three coarser levels doubles this number."""
    num_blocks: tuple[int, int, int, int] = (5, 7, 7, 9)
    """Number of transformer blocks per level of the encoder. The decoder has the same numbers on levels 1 to 3."""
    num_refinement_blocks: int = 4
    """Number of transformer blocks after the decoder, at full resolution."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Number of attention heads per level."""
    ffn_expansion: float = 2.66
    """Ratio of hidden channels to input channels in feed-forward layers and experts."""
    num_tokens: int = 32
    """Number of tokens in the dictionary. The routing instruction is a mixture of these tokens."""
    num_experts: int = 4
    """Number of experts per spatial routing module. Each pixel uses two of them."""

    def __post_init__(self) -> None:
        """Check that a network of these sizes can be built."""
        if self.in_channels < 1 or self.in_channels % 2 == 0:
            raise ValueError(f"in_channels: expected an odd number (1 + 2*context), found {self.in_channels}.")
        if self.out_channels != 1:
            raise ValueError(f"out_channels: expected 1 (the restored centre slice), found {self.out_channels}.")
        if self.num_experts < 2:
            raise ValueError(f"num_experts: expected at least 2 (each pixel uses two), found {self.num_experts}.")
        if min(*self.heads, self.num_tokens) < 1 or min(*self.num_blocks, self.num_refinement_blocks) < 0:
            raise ValueError(
                f"expected heads and num_tokens of at least 1 and blocks of at least 0, found heads {self.heads}, "
                f"num_tokens {self.num_tokens}, num_blocks {self.num_blocks}, "
                f"num_refinement_blocks {self.num_refinement_blocks}."
            )
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim: expected an even number, because downsampling halves it, found {self.dim}.")
        for level, heads in enumerate(self.heads):
            if (self.dim << level) % heads:
                raise ValueError(
                    f"heads: expected a divisor of {self.dim << level}, the channels at level {level + 1}, "
                    f"found {heads}."
                )

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the sizes of a preset of PRESETS.

        Raises:
            ValueError: there is no preset with this name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}.")
        return replace(cls(), **PRESETS[name])

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """Build the configuration from the plain values in a weight file."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
        return cls(**values)

    def to_tree(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


# Sizes that differ from the published ones, by name of the preset.
PRESETS: dict[Preset, dict[str, Any]] = {
    "official": {},
    # This preset has 22,248,687 parameters. It is the nearest natural variant to the 22.25 M parameters of the report
    # that this project follows.
    "report": {"num_blocks": (5, 7, 7, 8), "num_refinement_blocks": 5, "num_tokens": 16},
    # The starter model has these sizes. benchmarks/presets.py compares sizes after equal training time.
    "small": {
        "dim": 16,
        "num_blocks": (0, 2, 2, 2),
        "num_refinement_blocks": 2,
        "num_tokens": 8,
        "num_experts": 2,
    },
    # This preset is for demonstrations and tests and trains within minutes on two CPU cores. Blocks at full resolution
    # take the most time, so there is only one, in the refinement.
    "tiny": {"dim": 8, "num_blocks": (0, 1, 1, 1), "num_refinement_blocks": 1, "num_tokens": 8},
}


@dataclass(frozen=True)
class LossConfig:
    """The weights of the loss terms. Training minimises their weighted sum and logs each term."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference (L1)."""
    charbonnier_weight: float = 0.0
    """Weight of the mean of sqrt(d^2 + 1e-6) over the differences d, a smooth L1."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM."""
    ms_ssim_weight: float = 0.0
    """Weight of 1 - MS-SSIM. Slices must have at least 176 x 176 pixels."""
    gradient_weight: float = 0.0
    """Weight of the difference between the magnitudes of the image gradients."""
    load_weight: float = 0.001
    """Weight of the routing's load loss."""

    def __post_init__(self) -> None:
        """Check that all weights are finite and not negative, and that at least one term compares the images."""
        for name, weight in asdict(self).items():
            if not (weight >= 0 and isfinite(weight)):
                raise ValueError(f"loss.{name}: expected a finite weight of at least 0, found {weight}.")
        if not any(weight for name, weight in asdict(self).items() if name != "load_weight"):
            raise ValueError("loss: all weights except load_weight are 0. Set at least one of them above 0.")
