"""What is made from a subject: its pairs of volumes, and what was found in its files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.building.align import Alignment
from upfield.sharding.cohorts.problems import Field, Problem
from upfield.sharding.shardset.sample_key import Unit


@dataclass(frozen=True)
class Pair:
    """A low-field volume resampled to the high-field grid, and its high-field partner."""

    unit: Unit
    """Subject, kind and variant of the pair."""
    low: NDArray[np.float16]
    """`(X, Y, Z)` in [0, 1], on the high-field grid."""
    high: NDArray[np.float16]
    """`(X, Y, Z)` in [0, 1], on the same grid."""
    parameters: dict[str, Any]
    """The parameters of a synthetic low field and of a rendered head, or the alignment of a real pair."""
    labels: NDArray[np.int16] | None = None
    """`(X, Y, Z)`, the numbers of the structures that both fields show; None if they are not stored."""


@dataclass(frozen=True)
class SubjectPairs:
    """The pairs of one subject, and what was found in its files."""

    pairs: list[Pair]
    """One pair per unit of the subject."""
    alignment: Alignment | None
    """The motion of its high field; None if it was not registered."""
    voxel_hashes: dict[Field, str]
    """Result of `hash_voxels` for each volume as it was read."""
    doubts: list[Problem]
    """Doubts about its volumes, which only their voxels show."""
    stripped: dict[Field, bool]
    """Whether each scan shows a brain without skull; empty for label maps, because their heads differ."""
