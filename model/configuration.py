"""Sizes of the network and weights of the loss, free of torch so that `--help` answers at once."""

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal, Self

Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class AmirConfig:
    """Sizes of one AMIR network; the defaults are the published ones (preset `official`)."""

    in_channels: int = 1
    """Input slices: 1 + 2*context, an odd number; the centre one is restored."""
    out_channels: int = 1
    """Restored slices."""
    dim: int = 42
    """Channels at full resolution; each of the three coarser levels doubles them."""
    num_blocks: tuple[int, int, int, int] = (5, 7, 7, 9)
    """Transformer blocks per level; levels 1 to 3 have as many in the decoder again."""
    num_refinement_blocks: int = 4
    """Blocks after the decoder, at full resolution."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Attention heads per level."""
    ffn_expansion: float = 2.66
    """Hidden channels of feed-forward layers and experts, as a multiple of their input's."""
    num_tokens: int = 32
    """Tokens in the dictionary that the routing instruction is mixed from."""
    num_experts: int = 4
    """Experts per spatial routing module; two serve each pixel."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.in_channels < 1 or self.in_channels % 2 == 0:
            raise ValueError(f"in_channels: expected an odd number (1 + 2*context), found {self.in_channels}")
        if self.out_channels != 1:
            raise ValueError(f"out_channels: expected 1, the restored centre slice, found {self.out_channels}")
        if self.num_experts < 2:
            raise ValueError(f"num_experts: expected at least 2, since two serve each pixel, found {self.num_experts}")
        if min(*self.heads, self.num_tokens) < 1 or min(*self.num_blocks, self.num_refinement_blocks) < 0:
            raise ValueError(
                f"expected heads and num_tokens of at least 1 and no negative number of blocks, found heads "
                f"{self.heads}, num_tokens {self.num_tokens}, num_blocks {self.num_blocks}, "
                f"num_refinement_blocks {self.num_refinement_blocks}"
            )
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim: expected an even number, since down-sampling halves it, found {self.dim}")
        for level, heads in enumerate(self.heads):
            if (self.dim << level) % heads:
                raise ValueError(
                    f"heads: expected a divisor of {self.dim << level} channels at level {level + 1}, found {heads}"
                )

    @classmethod
    def preset(cls, name: str) -> Self:
        """Give the sizes of a preset: `official`, `report`, or `tiny`.

        Raises:
            ValueError: no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
        return replace(cls(), **PRESETS[name])

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """Make the configuration from plain values, as weight files hold it."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
        return cls(**values)

    def to_tree(self) -> dict[str, Any]:
        """Give the configuration as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


PRESETS: dict[str, dict[str, Any]] = {
    "official": {},
    # 22,248,687 parameters: the nearest natural variant of the 22.25 M that the report we follow states.
    "report": {"num_blocks": (5, 7, 7, 8), "num_refinement_blocks": 5, "num_tokens": 16},
    # Trains on two CPU cores within minutes; for demonstrations and tests. Blocks at full resolution cost the most and
    # are left to the refinement.
    "tiny": {"dim": 8, "num_blocks": (0, 1, 1, 1), "num_refinement_blocks": 1, "num_tokens": 8},
}


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: the weighted sum of these terms, each of which is logged."""

    l1_weight: float = 1.0
    """Weight of the mean absolute difference."""
    charbonnier_weight: float = 0.0
    """Weight of the smooth absolute difference, sqrt(d^2 + 1e-6)."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM."""
    ms_ssim_weight: float = 0.0
    """Weight of 1 - MS-SSIM; slices must have at least 176 x 176 pixels."""
    gradient_weight: float = 0.0
    """Weight of the difference between the sizes of the two images' gradients."""
    load_weight: float = 0.001
    """Weight of the routing's load loss."""

    def __post_init__(self) -> None:
        """Refuse weights that reward what is wrong, or ask for nothing."""
        for name, weight in asdict(self).items():
            if not (weight >= 0 and isfinite(weight)):
                raise ValueError(f"loss.{name}: expected a finite weight of at least 0, found {weight}")
        if not any(weight for name, weight in asdict(self).items() if name != "load_weight"):
            raise ValueError("loss: expected a weight above 0 beside load_weight, found none")
