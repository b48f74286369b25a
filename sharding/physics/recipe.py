"""The physics recipe for volumes that a high-field scanner measured."""

from typing import Any

import numpy as np

from upfield.imaging.volume import Volume
from upfield.sharding.physics.acquisition import acquire, draw_acquisition
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.sequences import tissue_signals
from upfield.sharding.physics.tissue_mixture import HeadTissues, find_tissues, low_field_signal


def simulate(
    high: Volume,
    config: PhysicsConfig,
    contrast: str,
    rng: np.random.Generator,
    tissues: HeadTissues | None = None,
) -> tuple[Volume, dict[str, Any]]:
    """Make a low-field scan of a head that a high-field scanner measured.

    Args:
        high: `(X, Y, Z)` float32 in RAS+, scaled to [0, 1] with 0 in air.
        config: ranges of the parameters.
        contrast: contrast of both fields: T1w, T2w or FLAIR.
        rng: generator that draws everything.
        tissues: what `find_tissues` found in the head, which saves time if several low fields are made from it.

    Returns:
        The low field on its acquired grid, and everything that was drawn, as plain values.

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """
    acquisition = draw_acquisition(config, contrast, rng)
    signals = tissue_signals(acquisition.sequence, acquisition.relaxations)
    tissues = tissues or find_tissues(high, contrast)
    low = acquire(low_field_signal(high, tissues, signals), acquisition, rng)
    return low, acquisition.to_tree() | {"levels": tissues.levels.to_tree()}
