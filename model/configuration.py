"""Sizes of the network and weights of the loss. It does not import torch, so that `--help` answers at once."""

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal, Self

Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class AmirConfig:
    """Sizes of an AMIR network. The defaults are the published ones (preset `official`)."""

    in_channels: int = 1
    """Input slices, an odd number: 1 + 2*context. The centre slice is restored."""
    out_channels: int = 1
    """Restored slices."""
    dim: int = 42
    """Channels at full resolution. Each of the three coarser levels doubles them."""
    num_blocks: tuple[int, int, int, int] = (5, 7, 7, 9)
    """Transformer blocks per level. The decoder has as many again on levels 1 to 3."""
    num_refinement_blocks: int = 4
    """Transformer blocks after the decoder, at full resolution."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Attention heads per level."""
    ffn_expansion: float = 2.66
    """Hidden channels of feed-forward layers and experts, as a multiple of their input channels."""
    num_tokens: int = 32
    """Tokens in the dictionary, of which the routing instruction is a mixture."""
    num_experts: int = 4
    """Experts per spatial routing module. Each pixel uses two."""

    def __post_init__(self) -> None:
        """Check that a network of these sizes can be built."""
        if self.in_channels < 1 or self.in_channels % 2 == 0:
            raise ValueError(f"in_channels: expected an odd number (1 + 2*context), found {self.in_channels}.")
        if self.out_channels != 1:
            raise ValueError(f"out_channels: expected 1 (the restored centre slice), found {self.out_channels}.")
        if self.num_experts < 2:
            raise ValueError(f"num_experts: expected at least 2 because each pixel uses two, found {self.num_experts}.")
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
        """Return the sizes of a preset: `official`, `report`, or `tiny`.

        Raises:
            ValueError: there is no such preset.
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


PRESETS: dict[str, dict[str, Any]] = {
    "official": {},
    # 22,248,687 parameters: the nearest natural variant to the 22.25 M of the report that we follow.
    "report": {"num_blocks": (5, 7, 7, 8), "num_refinement_blocks": 5, "num_tokens": 16},
    # For demonstrations and tests: trains on two CPU cores within minutes. Blocks at full resolution cost the most, so
    # there is only the one of the refinement.
    "tiny": {"dim": 8, "num_blocks": (0, 1, 1, 1), "num_refinement_blocks": 1, "num_tokens": 8},
}


@dataclass(frozen=True)
class LossConfig:
    """The weights of the loss terms. Training minimises their weighted sum and logs each term."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference."""
    charbonnier_weight: float = 0.0
    """Weight of the smooth absolute difference, sqrt(d^2 + 1e-6)."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM."""
    ms_ssim_weight: float = 0.0
    """Weight of 1 - MS-SSIM. Slices must have at least 176 x 176 pixels."""
    gradient_weight: float = 0.0
    """Weight of the difference between the magnitudes of the image gradients."""
    load_weight: float = 0.001
    """Weight of the routing's load loss."""

    def __post_init__(self) -> None:
        """Check that no weight is negative and that some term compares the images."""
        for name, weight in asdict(self).items():
            if not (weight >= 0 and isfinite(weight)):
                raise ValueError(f"loss.{name}: expected a finite weight of at least 0, found {weight}.")
        if not any(weight for name, weight in asdict(self).items() if name != "load_weight"):
            raise ValueError("loss: expected a weight above 0 besides load_weight, found only zeros.")
