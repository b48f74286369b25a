"""Acquire a noise-free signal as a 64 mT scanner does, on a grid of its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from upfield.imaging.volume import Volume
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.relaxation import Relaxation, Tissue
from upfield.sharding.physics.sequences import Sequence

Triple = tuple[int, int, int]
SpacingMm = tuple[float, float, float]


@dataclass(frozen=True)
class Acquisition:
    """Everything that is drawn for one low-field scan, except the fields of noise."""

    sequence: Sequence
    """Sequence, which determines the contrast."""
    relaxations: dict[Tissue, Relaxation]
    """Relaxation times of this person's tissues at 64 mT."""

    def to_tree(self) -> dict[str, Any]:
        """Return the parameters as plain values, as they are recorded with each sample."""
        raise NotImplementedError


def draw_acquisition(
    config: PhysicsConfig, contrast: str, rng: np.random.Generator, spacing_mm: SpacingMm | None = None
) -> Acquisition:
    """Draw the parameters of one low-field scan.

    Args:
        config: ranges of the parameters.
        contrast: T1w, T2w or FLAIR.
        rng: generator that draws them.
        spacing_mm: spacing along R, A and S, if it is not to be drawn. The slice axis is that of the largest spacing.

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """
    raise NotImplementedError


def acquire(signal: Volume, acquisition: Acquisition, rng: np.random.Generator, shape: Triple | None = None) -> Volume:
    """Acquire a low-field scan of a noise-free signal.

    Args:
        signal: `(I, J, K)` float32 at 64 mT, in RAS+ on any grid; about 1 in white matter, 0 in air.
        acquisition: what was drawn for this scan.
        rng: generator that draws bias, off-resonance, motion and noise.
        shape: voxels of the acquired grid. By default, the grid covers the box of `signal`.

    Returns:
        The magnitude `(A, B, C)` float32 on the acquired grid, which has the centre of `signal`, and its affine.
    """
    raise NotImplementedError
