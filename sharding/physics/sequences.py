"""Signal equations of the sequences, and the signal of each tissue."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from upfield.sharding.physics.relaxation import FieldStrength, Relaxation, Tissue


@dataclass(frozen=True)
class Sequence:
    """A sequence, with the times that determine its contrast."""

    kind: Literal["spin_echo", "inversion_recovery", "mprage", "spoiled_echo"]
    """Fast spin echo, the same after an inversion, a train of gradient echoes after an inversion, or FLASH/SPGR."""
    contrast: str
    """Contrast as a BIDS suffix: T1w, T2w or FLAIR."""
    tr_ms: float
    """Repetition time; for MPRAGE, from one inversion to the next."""
    te_ms: float
    """Echo time, the effective one of an echo train."""
    ti_ms: float = 0.0
    """Inversion time; 0 without an inversion."""
    flip_deg: float = 90.0
    """Flip angle of the excitation."""

    def to_tree(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        raise NotImplementedError


def draw_sequence(field: FieldStrength, contrast: str, rng: np.random.Generator) -> Sequence:
    """Draw a sequence for a contrast: of the 64 mT scanner (`low`) or of a 3 T scanner (`high`).

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """
    raise NotImplementedError


def tissue_signals(sequence: Sequence, relaxations: Mapping[Tissue, Relaxation]) -> dict[Tissue, float]:
    """Compute the magnitude of each tissue's signal, relative to white matter, which has 1."""
    raise NotImplementedError
