"""Signal equations of the sequences, and the signal of each tissue."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from upfield.common.errors import InputError
from upfield.common.ranges import Range
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.relaxation import FieldStrength, Relaxation, Tissue

Kind = Literal["spin_echo", "inversion_recovery", "mprage", "spoiled_echo"]
# Train of an MPRAGE: time from one gradient echo to the next, and number of echoes. Its centre lies at the inversion
# time.
MPRAGE_ECHO_MS = 7.5
MPRAGE_ECHOES = 160


@dataclass(frozen=True)
class Sequence:
    """A sequence, with the times that determine its contrast."""

    kind: Kind
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
        return asdict(self)


@dataclass(frozen=True)
class SequenceRanges:
    """Ranges of a sequence's parameters."""

    kind: Kind
    tr_ms: Range
    te_ms: Range
    ti_ms: Range = (0.0, 0.0)
    flip_deg: Range = (90.0, 90.0)


# The 64 mT scanner measures fast spin echoes, after an inversion for T1w and FLAIR.
LOW_SEQUENCES: Mapping[str, Kind] = {"T1w": "inversion_recovery", "T2w": "spin_echo", "FLAIR": "inversion_recovery"}
HIGH_SEQUENCES: Mapping[str, tuple[SequenceRanges, ...]] = {
    "T1w": (
        SequenceRanges("mprage", (1900, 2600), (2.2, 4), (850, 1100), (7, 10)),
        SequenceRanges("spoiled_echo", (9, 25), (2.2, 5), flip_deg=(15, 30)),
    ),
    "T2w": (SequenceRanges("spin_echo", (3000, 6000), (80, 120)),),
    "FLAIR": (SequenceRanges("inversion_recovery", (8000, 10000), (90, 140), (2300, 2600)),),
}


def low_ranges(contrast: str, config: PhysicsConfig) -> SequenceRanges:
    """Return the ranges of a sequence of the 64 mT scanner."""
    name, kind = contrast.lower(), LOW_SEQUENCES[contrast]
    ti_ms = (0.0, 0.0) if kind == "spin_echo" else getattr(config, f"{name}_ti_ms")
    return SequenceRanges(kind, getattr(config, f"{name}_tr_ms"), getattr(config, f"{name}_te_ms"), ti_ms)


def draw_sequence(
    field: FieldStrength, contrast: str, rng: np.random.Generator, config: PhysicsConfig | None = None
) -> Sequence:
    """Draw a sequence for a contrast: of the 64 mT scanner (`low`) or of a 3 T scanner (`high`).

    Args:
        field: `low` or `high`.
        contrast: T1w, T2w or FLAIR.
        rng: generator that draws the times.
        config: ranges of the 64 mT scanner; by default, the default ranges.

    Raises:
        InputError: the contrast is not T1w, T2w or FLAIR.
    """
    known = LOW_SEQUENCES if field == "low" else HIGH_SEQUENCES
    if contrast not in known:
        raise InputError(
            f"synthetic.recipe physics: expected a contrast of {', '.join(known)}, found {contrast}. "
            "State one of these as the cohort's contrast, or use recipe: report."
        )
    if field == "low":
        ranges = low_ranges(contrast, config or PhysicsConfig())
    else:
        ranges = HIGH_SEQUENCES[contrast][int(rng.integers(len(HIGH_SEQUENCES[contrast])))]
    tr_ms, te_ms, ti_ms, flip_deg = (
        round(float(rng.uniform(*span)), 3) for span in (ranges.tr_ms, ranges.te_ms, ranges.ti_ms, ranges.flip_deg)
    )
    return Sequence(ranges.kind, contrast, tr_ms, te_ms, ti_ms, flip_deg)


def tissue_signals(sequence: Sequence, relaxations: Mapping[Tissue, Relaxation]) -> dict[Tissue, float]:
    """Compute the magnitude of each tissue's signal, relative to white matter, which has 1."""
    white = abs(_signal(sequence, relaxations[Tissue.WHITE]))
    return {tissue: abs(_signal(sequence, relaxation)) / white for tissue, relaxation in relaxations.items()}


def _signal(sequence: Sequence, tissue: Relaxation) -> float:
    """Compute the signal, relative to fully relaxed water; negative while the magnetization is still inverted.

    The equations of spin echo, inversion recovery and spoiled gradient echo are those of Bernstein, King and Zhou,
    Handbook of MRI Pulse Sequences, 2004.
    """
    decay = tissue.density * math.exp(-sequence.te_ms / tissue.t2_ms)
    recovered = math.exp(-sequence.tr_ms / tissue.t1_ms)
    if sequence.kind == "spin_echo":
        # An echo train leaves no longitudinal magnetization, which then recovers until the next excitation.
        return decay * (1 - recovered)
    if sequence.kind == "inversion_recovery":
        return decay * (1 - 2 * math.exp(-sequence.ti_ms / tissue.t1_ms) + recovered)
    flip = math.radians(sequence.flip_deg)
    if sequence.kind == "spoiled_echo":
        return decay * math.sin(flip) * (1 - recovered) / (1 - math.cos(flip) * recovered)
    return decay * math.sin(flip) * _mprage_magnetization(sequence, tissue.t1_ms, math.cos(flip))


def _mprage_magnetization(sequence: Sequence, t1_ms: float, cosine: float) -> float:
    """Compute the longitudinal magnetization at the centre of an MPRAGE train in its steady state.

    The train pulls the magnetization towards its own steady state (Deichmann and Haase, J Magn Reson 96, 1992). Before
    and after the train, it recovers freely. Each part is a linear map z -> a z + b of the magnetization, and the steady
    state is the fixed point of their product.
    """
    half = MPRAGE_ECHOES // 2
    free = math.exp(-MPRAGE_ECHO_MS / t1_ms)
    pull = (free * cosine) ** half
    train = (pull, (1 - free) / (1 - free * cosine) * (1 - pull))
    before_ms = max(sequence.ti_ms - half * MPRAGE_ECHO_MS, 0)
    after_ms = max(sequence.tr_ms - sequence.ti_ms - half * MPRAGE_ECHO_MS, 0)

    def then(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    def recovery(time_ms: float) -> tuple[float, float]:
        left = math.exp(-time_ms / t1_ms)
        return left, 1 - left

    to_centre = then(then((-1.0, 0.0), recovery(before_ms)), train)
    slope, shift = then(then(to_centre, train), recovery(after_ms))
    start = shift / (1 - slope)
    return to_centre[0] * start + to_centre[1]
