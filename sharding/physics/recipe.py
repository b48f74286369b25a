"""The physics recipe for volumes that a high-field scanner measured."""

from typing import Any

import numpy as np

from upfield.imaging.volume import Volume
from upfield.sharding.physics.acquisition import acquire, draw_acquisition
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.sequences import tissue_signals
from upfield.sharding.physics.tissue_mixture import low_field_signal


def simulate(
    high: Volume, config: PhysicsConfig, contrast: str, rng: np.random.Generator
) -> tuple[Volume, dict[str, Any]]:
    """Make a low-field scan of a head that a high-field scanner measured.

    Args:
        high: `(X, Y, Z)` float32 in RAS+, scaled to [0, 1] with 0 in air.
        config: ranges of the parameters.
        contrast: contrast of both fields: T1w, T2w or FLAIR.
        rng: generator that draws everything.

    Returns:
        The low field on its acquired grid, and everything that was drawn, as plain values.

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """
    acquisition = draw_acquisition(config, contrast, rng)
    signals = tissue_signals(acquisition.sequence, acquisition.relaxations)
    signal, levels = low_field_signal(high, contrast, signals)
    low = acquire(signal, acquisition, rng)
    return low, acquisition.to_tree() | {"levels": levels.to_tree()}
