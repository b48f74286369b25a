"""Measurements of one volume and of a whole split: the objects that travel from measuring to summaries and reports.

Every mapping that starts with a method is keyed by its name. While models are measured, a model's name is its full
path, so that no model can be called like the interpolation. In a report the names are `CUBIC`, `MODEL` and `AGAINST`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

CUBIC, MODEL, AGAINST = "cubic", "model", "against"


@dataclass(frozen=True)
class TrustMeasures:
    """How far one method's restored volume can be trusted: its contradiction of the scan, and its instability."""

    inconsistency: float
    """Square root of the energy that contradicts the scan, as a share of the scan's energy."""
    bands: tuple[float, ...]
    """The same energy share per band of spatial frequency (not its root)."""
    slice_residual: NDArray[np.float64]
    """`(X,)`: root mean square of the contradiction per slice, intensities in [0, 1]."""
    disagreement: float | None
    """Mean standard deviation over perturbed inputs inside the head; None if it was not measured."""
    slice_disagreement: NDArray[np.float64] | None
    """`(X,)`: the same per slice, over all its pixels."""


@dataclass(frozen=True)
class VolumeMeasurements:
    """All measurements of one volume under every method."""

    cohort: str
    subject: str
    kind: str
    """`real` or `synthetic`."""
    name: str
    """The part that the keys of its slices share: the key without the slice."""
    keys: tuple[str, ...]
    """X keys, from left to right."""
    slices: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """method -> slice metric -> `(X,)`."""
    values: Mapping[str, Mapping[str, float]]
    """method -> volume metric -> value."""
    trust: Mapping[str, TrustMeasures]
    """method -> how far it can be trusted."""

    def merge(self, other: "VolumeMeasurements") -> "VolumeMeasurements":
        """Return the measurements of this volume under the methods of both."""
        assert self.keys == other.keys
        slices, values = {**self.slices, **other.slices}, {**self.values, **other.values}
        return replace(self, slices=slices, values=values, trust={**self.trust, **other.trust})

    def select(self, methods: Mapping[str, str]) -> "VolumeMeasurements":
        """Return the measurements under some methods, renamed.

        Args:
            methods: new name -> present name.
        """
        slices, values, trust = (
            {name: mapping[method] for name, method in methods.items()}
            for mapping in (self.slices, self.values, self.trust)
        )
        return replace(self, slices=slices, values=values, trust=trust)


@dataclass(frozen=True)
class VolumeImages:
    """The images behind the measurements of one volume, all `(X, Y, Z)` float32."""

    name: str
    scan: NDArray[np.float32]
    """The low-field scan as blocks of its own voxels, in [0, 1]."""
    high: NDArray[np.float32]
    """The high-field volume, in [0, 1]."""
    restored: Mapping[str, NDArray[np.float32]]
    """method -> image in [0, 1]; includes cubic interpolation."""
    residual: Mapping[str, NDArray[np.float32]]
    """method -> what contradicts the scan, in [-1, 1]."""
    disagreement: Mapping[str, NDArray[np.float32]]
    """method -> standard deviation over perturbed inputs; empty if it was not measured."""
    spacing_mm: tuple[float, float, float]
    """Of the voxels."""

    def merge(self, other: "VolumeImages") -> "VolumeImages":
        """Return the images of this volume under the methods of both."""
        assert self.name == other.name
        restored, residual = {**self.restored, **other.restored}, {**self.residual, **other.residual}
        disagreement = {**self.disagreement, **other.disagreement}
        return replace(self, restored=restored, residual=residual, disagreement=disagreement)

    def select(self, methods: Mapping[str, str]) -> "VolumeImages":
        """Return the images under some methods, renamed.

        Args:
            methods: new name -> present name.
        """
        restored, residual, disagreement = (
            {name: mapping[method] for name, method in methods.items() if method in mapping}
            for mapping in (self.restored, self.residual, self.disagreement)
        )
        return replace(self, restored=restored, residual=residual, disagreement=disagreement)


@dataclass(frozen=True)
class SplitMeasurements:
    """Measurements of all volumes of a split, under all methods measured so far."""

    volumes: tuple[VolumeMeasurements, ...] = ()
    """In the order of their keys, each with all methods."""
    shown: VolumeImages | None = None
    """Images of the volume that the report shows; only the main process has them."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(self.volumes[0].slices) if self.volumes else ()

    def merge(self, other: "SplitMeasurements") -> "SplitMeasurements":
        """Return the measurements of the same volumes under the methods of both; either may be empty."""
        if not (self.volumes and other.volumes):
            return self if self.volumes else other
        volumes = tuple(mine.merge(added) for mine, added in zip(self.volumes, other.volumes, strict=True))
        shown = self.shown.merge(other.shown) if self.shown and other.shown else None
        return SplitMeasurements(volumes, shown)


@dataclass(frozen=True)
class ExampleSlice:
    """One slice before and after restoration, with its target; images `(Y, Z)` in [0, 1], Y anterior, Z superior."""

    key: str
    """Key of the sample."""
    scan: NDArray[np.floating[Any]]
    """The low-field scan as blocks of its own voxels."""
    cubic: NDArray[np.floating[Any]]
    """Cubic interpolation of the scan."""
    restored: NDArray[np.floating[Any]]
    """Output of the model."""
    high: NDArray[np.floating[Any]]
    """The high-field slice."""
    values: Mapping[str, float] = field(default_factory=dict)
    """`psnr_slice` (dB), `ssim_slice`, and the same with the prefix `cubic_`; those present are written below the
    images."""
