"""Draw heads from label maps, and render them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.volume import Volume
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.phantoms.configuration import HeadsConfig
from upfield.sharding.phantoms.label_map import LabelMap
from upfield.sharding.physics.relaxation import Tissue


@dataclass(frozen=True)
class LabelHead:
    """One person's head on the high-field grid."""

    labels: NDArray[np.int16]
    """`(X, Y, Z)`, numbers as in the label map."""
    affine: NDArray[np.float64]
    """`(4, 4)`, voxel index -> world mm; the origin is the centre of the grid."""
    parameters: dict[str, Any]
    """Everything that was drawn for this head, as plain values, as it is recorded with each sample."""

    def render(self, signals: Mapping[Tissue, float], rng: np.random.Generator) -> Volume:
        """Render the head without noise.

        Args:
            signals: signal of each tissue, for example from `tissue_signals`.
            rng: generator for what differs between two scans of one head.

        Returns:
            `(X, Y, Z)` float32 on the high-field grid.
        """
        raise NotImplementedError


def draw_head(
    label_map: LabelMap, geometry: GeometryConfig, config: HeadsConfig, rng: np.random.Generator
) -> LabelHead:
    """Draw a head from a label map: deformation, mirroring, tissues, texture, vessels, and field of view."""
    raise NotImplementedError


def high_field(head: LabelHead, config: HeadsConfig, rng: np.random.Generator) -> tuple[Volume, dict[str, Any]]:
    """Measure a head with a T1-weighted sequence at 3 T: contrast, coil sensitivity, blur and Rician noise.

    Returns:
        The volume `(X, Y, Z)` float32 on the high-field grid, and everything that was drawn, as plain values.
    """
    raise NotImplementedError
