"""Measurements and images of the volumes of a split. Summaries and reports are made from them.

A method is cubic interpolation or a model. The mappings are keyed by the name of the method. During measurement, the
name of a model is its full path, which cannot be equal to `CUBIC`. In a report, the names are `CUBIC`, `MODEL` and
`AGAINST`.
"""

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import EXIT_INPUT, InputError, RunError, explain_error

CUBIC, MODEL, AGAINST = "cubic", "model", "against"


@dataclass(frozen=True)
class TrustMeasures:
    """Measures of trust in one restored volume: how much it contradicts the scan, and how unstable it is."""

    inconsistency: float
    """Square root of the energy that contradicts the scan, as a share of the scan's energy."""
    bands: tuple[float, ...]
    """The same share of energy for each band of spatial frequency, without the root."""
    slice_residual: NDArray[np.float64]
    """`(X,)`, root mean square of the contradiction in each slice, for intensities in [0, 1]."""
    disagreement: float | None
    """Standard deviation over perturbed inputs, averaged over the head; None if it was not measured."""
    slice_disagreement: NDArray[np.float64] | None
    """`(X,)`, standard deviation averaged over all pixels of each slice; None if it was not measured."""


@dataclass(frozen=True)
class VolumeMeasurements:
    """All measurements of one volume, for every method."""

    cohort: str
    subject: str
    kind: str
    """`real` or `synthetic`."""
    name: str
    """Common part of the sample keys, without the slice."""
    keys: tuple[str, ...]
    """Keys of the volume's X slices in the shard set, from left to right."""
    slices: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """Method -> slice metric -> `(X,)`."""
    values: Mapping[str, Mapping[str, float]]
    """Method -> volume metric -> value."""
    trust: Mapping[str, TrustMeasures]
    """Method -> measures of trust."""

    def merge(self, other: "VolumeMeasurements") -> "VolumeMeasurements":
        """Combine the measurements of this volume with those that `other` holds for further methods."""
        assert self.keys == other.keys
        slices, values = {**self.slices, **other.slices}, {**self.values, **other.values}
        return replace(self, slices=slices, values=values, trust={**self.trust, **other.trust})

    def select(self, methods: Mapping[str, str]) -> "VolumeMeasurements":
        """Return the measurements of some methods only, under new names.

        Args:
            methods: new name -> current name.
        """
        slices, values, trust = (
            {name: mapping[method] for name, method in methods.items()}
            for mapping in (self.slices, self.values, self.trust)
        )
        return replace(self, slices=slices, values=values, trust=trust)


@dataclass(frozen=True)
class VolumeImages:
    """The scan, the target, the restored volumes and the maps of one volume, all `(X, Y, Z)` float32."""

    name: str
    scan: NDArray[np.float32]
    """The low-field scan as blocks of its own voxels, in [0, 1]."""
    high: NDArray[np.float32]
    """The high-field volume, in [0, 1]."""
    restored: Mapping[str, NDArray[np.float32]]
    """Method -> restored volume in [0, 1]; includes cubic interpolation."""
    residual: Mapping[str, NDArray[np.float32]]
    """Method -> difference that contradicts the scan, in [-1, 1]."""
    disagreement: Mapping[str, NDArray[np.float32]]
    """Method -> standard deviation over perturbed inputs; empty if it was not measured."""
    spacing_mm: tuple[float, float, float]
    """Voxel spacing of all images."""

    def merge(self, other: "VolumeImages") -> "VolumeImages":
        """Combine the images of this volume with those that `other` holds for further methods."""
        assert self.name == other.name
        restored, residual = {**self.restored, **other.restored}, {**self.residual, **other.residual}
        disagreement = {**self.disagreement, **other.disagreement}
        return replace(self, restored=restored, residual=residual, disagreement=disagreement)

    def select(self, methods: Mapping[str, str]) -> "VolumeImages":
        """Return the images of some methods only, under new names.

        Args:
            methods: new name -> current name.
        """
        restored, residual, disagreement = (
            {name: mapping[method] for name, method in methods.items() if method in mapping}
            for mapping in (self.restored, self.residual, self.disagreement)
        )
        return replace(self, restored=restored, residual=residual, disagreement=disagreement)


@dataclass(frozen=True)
class VolumeFailure:
    """The reason why one method could not be measured on one volume."""

    volume: str
    """Name of the volume."""
    method: str
    """Name of the method."""
    reason: str
    """The error in one line."""
    exit_code: int
    """2 if the user can fix the problem, otherwise 1."""
    details: str
    """The traceback."""

    @classmethod
    def of(cls, volume: str, method: str, error: Exception) -> "VolumeFailure":
        """Describe the error that a method raised on a volume."""
        reason, exit_code = explain_error(error)
        reason = reason.removeprefix(f"{volume}: ")
        return cls(volume, method, reason, exit_code, "".join(traceback.format_exception(error)))

    def to_error(self) -> InputError | RunError:
        """Return an error with the reason, the exit code and the traceback of the failure."""
        error = (InputError if self.exit_code == EXIT_INPUT else RunError)(f"{self.volume}: {self.reason}")
        error.add_note(self.details)
        return error


@dataclass(frozen=True)
class SplitMeasurements:
    """Measurements of all volumes of a split, for all methods measured so far."""

    volumes: tuple[VolumeMeasurements, ...] = ()
    """One entry per volume, in the order of the sample keys. A method that failed on a volume is missing there."""
    shown: VolumeImages | None = None
    """Images of the volume that the report shows; only the main process has them."""
    failures: tuple[VolumeFailure, ...] = ()
    """The volumes on which methods failed."""

    @property
    def methods(self) -> set[str]:
        """Names of the methods, whether they were measured or failed."""
        measured = {method for volume in self.volumes for method in volume.slices}
        return measured | {failure.method for failure in self.failures}

    def with_all(self, methods: Iterable[str]) -> tuple[VolumeMeasurements, ...]:
        """Return the volumes on which all of `methods` were measured."""
        return tuple(volume for volume in self.volumes if volume.slices.keys() >= set(methods))

    def merge(self, other: "SplitMeasurements") -> "SplitMeasurements":
        """Combine these measurements with those of the same volumes for further methods. Either side may be empty."""
        volumes = {volume.name: volume for volume in self.volumes}
        for volume in other.volumes:
            volumes[volume.name] = volumes[volume.name].merge(volume) if volume.name in volumes else volume
        shown = self.shown or other.shown
        if self.shown and other.shown and self.shown.name == other.shown.name:
            shown = self.shown.merge(other.shown)
        ordered = sorted(volumes.values(), key=lambda volume: volume.keys)
        return SplitMeasurements(tuple(ordered), shown, self.failures + other.failures)


@dataclass(frozen=True)
class ExampleSlice:
    """One slice before and after restoration, and its target. Images are `(Y, Z)` in [0, 1]; Y anterior, Z superior."""

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
    """`psnr_slice` (dB), `ssim_slice`, and the same with the prefix `cubic_`. The values that are present are written
    below the images."""
