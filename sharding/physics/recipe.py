"""The physics recipe for volumes that a high-field scanner measured."""

from typing import Any

import numpy as np

from upfield.imaging.volume import Volume
from upfield.sharding.physics.configuration import PhysicsConfig


def simulate(
    high: Volume, config: PhysicsConfig, contrast: str, rng: np.random.Generator
) -> tuple[Volume, dict[str, Any]]:
    """Make a low-field scan of a head that a high-field scanner measured.

    Args:
        high: `(X, Y, Z)` float32 in RAS+, with 0 in air, at any scale.
        config: ranges of the parameters.
        contrast: contrast of both fields: T1w, T2w or FLAIR.
        rng: generator that draws everything.

    Returns:
        The low field on its acquired grid, and everything that was drawn, as plain values.

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """
    raise NotImplementedError
