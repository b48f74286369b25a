"""Proton density and relaxation times of the tissues of the head at 64 mT and at 3 T."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

FieldStrength = Literal["low", "high"]


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
    spread: Relaxation
    """Standard deviation between people, as a fraction of the mean."""
    source: str
    """Where the figures come from."""


def draw_relaxation(field: FieldStrength, rng: np.random.Generator, spread: float = 1.0) -> dict[Tissue, Relaxation]:
    """Draw the relaxation times of one person's tissues.

    Args:
        field: `low` is 64 mT, `high` is 3 T.
        rng: generator that draws them. The number of draws does not depend on `field` or `spread`.
        spread: factor on the spread between people; 0 returns the means.
    """
    raise NotImplementedError
