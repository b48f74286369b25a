"""Proton density and relaxation times of the tissues of the head at 64 mT and at 3 T."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

FieldStrength = Literal["low", "high"]
# No person lies farther from the mean than this, in standard deviations.
MOST_DEVIATIONS = 2.5
# White and grey matter of one person deviate together: this is the correlation of each with what they share. The order
# of their signals, which is the same in all people, depends on it.
SHARED = 0.95


class Tissue(StrEnum):
    """A tissue with relaxation times of its own."""

    WHITE = "white"
    GREY = "grey"
    """Cortex, of the cerebrum and the cerebellum."""
    DEEP_GREY = "deep_grey"
    """Thalamus and basal ganglia, whose myelin and iron make them resemble white matter more than cortex does."""
    FLUID = "fluid"
    """Cerebrospinal fluid."""
    LESION = "lesion"
    """Lesion of white matter, with more water than white matter."""
    BLOOD = "blood"
    FAT = "fat"
    MUSCLE = "muscle"
    SKIN = "skin"
    BONE = "bone"
    """Compact bone, which has almost no signal."""
    MARROW = "marrow"
    """Fatty marrow, such as that between the two tables of the skull."""
    VITREOUS = "vitreous"
    """The body of the eye."""
    AIR = "air"


BRAIN = (Tissue.WHITE, Tissue.GREY, Tissue.DEEP_GREY, Tissue.LESION)


@dataclass(frozen=True)
class Relaxation:
    """Properties of a tissue that determine its signal."""

    density: float
    """Density of visible protons, relative to water."""
    t1_ms: float
    """Longitudinal relaxation time."""
    t2_ms: float
    """Transverse relaxation time."""


@dataclass(frozen=True)
class RelaxationSource:
    """A tissue's properties at one field strength, how much they differ between people, and their source."""

    mean: Relaxation
    """Mean over people."""
    spread: float
    """Standard deviation of both times between people, as a fraction of the mean. That of the density is a third."""
    source: str
    """Where the figures come from."""


def _row(density: float, t1_ms: float, t2_ms: float, spread: float, source: str) -> RelaxationSource:
    return RelaxationSource(Relaxation(density, t1_ms, t2_ms), spread, source)


BRAINWEB = "density: BrainWeb"
OREILLY = "O'Reilly and Webb 2022"
ROONEY = "Rooney 2007"
SCALED = f"{OREILLY}, T1 scaled from 50 to 64 mT by the power law of {ROONEY}"
STANISZ = "Stanisz 2005"
BAZELAIRE = "de Bazelaire 2004"
WANSAPURA = "Wansapura 1999"
ASSLAENDER = "Asslaender 2024"
DENSITY_SET = "density: set"
BETWEEN = "set between white and grey matter, where T1 maps at 3 T show it"
LIKE_FLUID = "set like fluid, with a shorter T2"
NO_SIGNAL = "T2 is too short for any of the sequences"
SET = "no measurement was found; set"

# fmt: off
LOW: Mapping[Tissue, RelaxationSource] = {
    Tissue.WHITE: _row(0.77, 302, 102, 0.04, f"{SCALED}; {BRAINWEB}"),
    Tissue.GREY: _row(0.86, 359, 107, 0.04, f"{SCALED}; {BRAINWEB}"),
    Tissue.DEEP_GREY: _row(0.82, 336, 98, 0.04, BETWEEN),
    Tissue.FLUID: _row(1.0, 3700, 1580, 0.08, f"{OREILLY} at 50 mT; nearly independent of the field"),
    Tissue.LESION: _row(0.88, 480, 180, 0.15, f"{SET} by the ratios to white matter at 3 T"),
    Tissue.BLOOD: _row(0.85, 530, 250, 0.12, f"T1: {ROONEY}, extrapolated; T2: as at 3 T; {DENSITY_SET}"),
    Tissue.FAT: _row(1.0, 130, 120, 0.1, f"T1: {OREILLY} at 50 mT; T2: set by the scalp of 64 mT scans"),
    Tissue.MUSCLE: _row(0.95, 187, 39, 0.08, f"{SCALED}; {DENSITY_SET}"),
    Tissue.SKIN: _row(0.8, 190, 35, 0.15, f"{SET} like muscle"),
    Tissue.BONE: _row(0.15, 130, 1.0, 0.1, NO_SIGNAL),
    Tissue.MARROW: _row(0.9, 140, 100, 0.12, f"{SET} between fat and muscle"),
    Tissue.VITREOUS: _row(1.0, 3500, 1000, 0.08, LIKE_FLUID),
    Tissue.AIR: _row(0.0, 1000, 100, 0.0, "no protons"),
}
HIGH: Mapping[Tissue, RelaxationSource] = {
    Tissue.WHITE: _row(0.77, 900, 69, 0.05, f"T1: 600 to 1100 ms in {ASSLAENDER}; T2: {STANISZ}; {BRAINWEB}"),
    Tissue.GREY: _row(0.86, 1450, 90, 0.05, f"T1: between {WANSAPURA} and {STANISZ}; T2: set below both; {BRAINWEB}"),
    Tissue.DEEP_GREY: _row(0.82, 1180, 72, 0.05, BETWEEN),
    Tissue.FLUID: _row(1.0, 4300, 2000, 0.05, f"T1: {ROONEY}; T2: range of published values"),
    Tissue.LESION: _row(0.88, 1450, 130, 0.15, f"{SET} like grey matter, with a longer T2"),
    Tissue.BLOOD: _row(0.85, 1930, 250, 0.08, f"T1: {STANISZ}; T2: set below the value there; {DENSITY_SET}"),
    Tissue.FAT: _row(1.0, 382, 68, 0.05, BAZELAIRE),
    Tissue.MUSCLE: _row(0.95, 1150, 40, 0.1, f"between {BAZELAIRE} and {STANISZ}; {DENSITY_SET}"),
    Tissue.SKIN: _row(0.8, 1000, 35, 0.15, SET),
    Tissue.BONE: _row(0.15, 300, 0.5, 0.1, NO_SIGNAL),
    Tissue.MARROW: _row(0.9, 480, 58, 0.12, f"between vertebral marrow and fat, {BAZELAIRE}"),
    Tissue.VITREOUS: _row(1.0, 4200, 1000, 0.05, LIKE_FLUID),
    Tissue.AIR: _row(0.0, 1000, 100, 0.0, "no protons"),
}
# fmt: on


def draw_relaxation(field: FieldStrength, rng: np.random.Generator, spread: float = 1.0) -> dict[Tissue, Relaxation]:
    """Draw the relaxation times of one person's tissues.

    Args:
        field: `low` is 64 mT, `high` is 3 T.
        rng: generator that draws them. The number of draws does not depend on `field` or `spread`.
        spread: factor on the spread between people; 0 returns the means.
    """
    table = LOW if field == "low" else HIGH
    own, shared = rng.standard_normal((len(Tissue), 3)), rng.standard_normal(3)
    brain = [index for index, tissue in enumerate(Tissue) if tissue in BRAIN]
    own[brain] = SHARED * shared + np.sqrt(1 - SHARED**2) * own[brain]
    deviations = np.clip(own, -MOST_DEVIATIONS, MOST_DEVIATIONS) * spread
    drawn: dict[Tissue, Relaxation] = {}
    for tissue, (density, t1, t2) in zip(Tissue, deviations.tolist(), strict=True):
        row = table[tissue]
        drawn[tissue] = Relaxation(
            density=round(row.mean.density * (1 + row.spread / 3 * density), 4),
            t1_ms=round(row.mean.t1_ms * (1 + row.spread * t1), 2),
            t2_ms=round(row.mean.t2_ms * (1 + row.spread * t2), 2),
        )
    return drawn


def relaxation_trees(relaxations: Mapping[Tissue, Relaxation]) -> dict[str, dict[str, float]]:
    """Return the properties of all tissues with a signal as plain values, as they are recorded with each sample."""
    return {tissue.value: asdict(relaxation) for tissue, relaxation in relaxations.items() if relaxation.density}
