"""Measure a split volume by volume: models beside cubic interpolation, under the same definitions.

One volume is in memory at a time, so that memory does not grow with the number of subjects.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.errors import RunError
from upfield.evaluation.consistency import LowFieldSampling, check_consistency
from upfield.evaluation.disagreement import disagreement
from upfield.evaluation.metrics import METRICS, SLICE_METRICS, VOLUME_METRICS, ImagePair
from upfield.evaluation.volumes import StackedPair, read_pair
from upfield.export.scans.restoration import Restorer, restore_volume
from upfield.imaging.head_mask import head_mask
from upfield.sharding.previews.selection import VolumePair
from upfield.sharding.shardset.reading import ShardSplit

CUBIC, MODEL, AGAINST = "cubic", "model", "against"


@dataclass(frozen=True)
class Trust:
    """Where a method might have invented something, in numbers."""

    inconsistency: float
    """Root of the energy of what contradicts the scan, as a share of the scan's."""
    bands: tuple[float, ...]
    """The same energy share per band of spatial frequency (not its root)."""
    slice_residual: NDArray[np.float64]
    """`(X,)`: root mean square of the contradiction per slice, intensities in [0, 1]."""
    disagreement: float | None
    """Mean standard deviation over perturbed inputs inside the head; None where it was not looked for."""
    slice_disagreement: NDArray[np.float64] | None
    """`(X,)`: the same per slice, over all its pixels."""


@dataclass(frozen=True)
class VolumeFigures:
    """All figures of one volume."""

    cohort: str
    subject: str
    kind: str
    name: str
    """As its keys call it, without the slice."""
    keys: tuple[str, ...]
    """X keys, from left to right."""
    slices: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """method -> slice metric -> `(X,)`."""
    values: Mapping[str, Mapping[str, float]]
    """method -> volume metric -> value."""
    trust: Mapping[str, Trust]
    """method -> what is to be doubted."""

    def joined(self, other: "VolumeFigures") -> "VolumeFigures":
        """Give the same volume with the methods of both."""
        assert self.keys == other.keys
        slices, values = {**self.slices, **other.slices}, {**self.values, **other.values}
        return replace(self, slices=slices, values=values, trust={**self.trust, **other.trust})

    def of(self, methods: Mapping[str, str]) -> "VolumeFigures":
        """Give the same of some methods: the name they shall have -> the one that they have."""
        slices, values, trust = (
            {name: mapping[method] for name, method in methods.items()}
            for mapping in (self.slices, self.values, self.trust)
        )
        return replace(self, slices=slices, values=values, trust=trust)


@dataclass(frozen=True)
class VolumeImages:
    """The images that the figures of one volume are of, all `(X, Y, Z)`."""

    name: str
    scan: NDArray[np.float32]
    """What the scanner gave, as blocks of its own voxels, in [0, 1]."""
    high: NDArray[np.float32]
    """In [0, 1]."""
    restored: Mapping[str, NDArray[np.float32]]
    """method -> image in [0, 1]; cubic interpolation among them."""
    residual: Mapping[str, NDArray[np.float32]]
    """method -> what contradicts the scan, in [-1, 1]."""
    disagreement: Mapping[str, NDArray[np.float32]]
    """method -> standard deviation over perturbed inputs; empty where it was not looked for."""
    spacing_mm: tuple[float, float, float]
    """Of the voxels."""

    def joined(self, other: "VolumeImages") -> "VolumeImages":
        """Give the same volume with the methods of both."""
        assert self.name == other.name
        restored, residual = {**self.restored, **other.restored}, {**self.residual, **other.residual}
        disagreement = {**self.disagreement, **other.disagreement}
        return replace(self, restored=restored, residual=residual, disagreement=disagreement)

    def of(self, methods: Mapping[str, str]) -> "VolumeImages":
        """Give the same of some methods: the name they shall have -> the one that they have."""
        restored, residual, disagreement = (
            {name: mapping[method] for name, method in methods.items() if method in mapping}
            for mapping in (self.restored, self.residual, self.disagreement)
        )
        return replace(self, restored=restored, residual=residual, disagreement=disagreement)


@dataclass(frozen=True)
class Measuring:
    """How to measure."""

    restorers: Mapping[str, Restorer | None]
    """method -> what restores; None for cubic interpolation."""
    batch_size: int
    """Slices restored at once."""
    perturb: bool
    """Look for disagreement, which restores everything four times."""
    device: torch.device
    """Where metrics are computed."""


def real_first(pairs: list[VolumePair]) -> list[VolumePair]:
    """Give pairs with real ones first, so that the volume shown in a report is a real one where there is any."""
    return sorted(pairs, key=lambda pair: pair.first.kind != "real")


def measure(how: Measuring, split: ShardSplit, pairs: list[VolumePair]) -> Iterator[tuple[VolumeFigures, VolumeImages]]:
    """Measure volumes one after the other.

    Args:
        how: what with.
        split: where they are.
        pairs: the volumes.

    Raises:
        RunError: a model gives NaN.
    """
    for listed in pairs:
        sampling = LowFieldSampling.of(split.manifest, listed.first.cohort, split.record(listed.samples[0]))
        # Not kept in a name, which would hold it until the next one is read.
        yield measure_volume(how, read_pair(split, listed), sampling)


def measure_volume(how: Measuring, pair: StackedPair, sampling: LowFieldSampling) -> tuple[VolumeFigures, VolumeImages]:
    """Restore and measure one volume.

    Args:
        how: what with.
        pair: the volume.
        sampling: of its scan.

    Raises:
        RunError: a model gives NaN.
    """
    head = head_mask(pair.high)
    cubic = pair.cubic
    restored: dict[str, NDArray[np.float32]] = {}
    doubts: dict[str, NDArray[np.float32]] = {}
    for method, restorer in how.restorers.items():
        if restorer is None:
            restored[method] = cubic
            continue
        restored[method] = restore_volume(pair.low, restorer, how.batch_size)
        if not np.isfinite(restored[method]).all():
            raise RunError(f"{pair.name}: expected finite slices from the model, found NaN among them; train it anew")
        if how.perturb:

            def restore(low: NDArray[np.float32], restorer: Restorer = restorer) -> NDArray[np.float32]:
                return restore_volume(low, restorer, how.batch_size)

            # By name, so that the noise is the same whichever process measures the volume.
            seed = zlib.crc32(pair.name.encode())
            doubts[method] = disagreement(pair.low, restored[method], restore, seed)
    images = {method: to_pair(image, pair.high, head, how.device) for method, image in restored.items()}
    found = {method: check_consistency(image, cubic, sampling) for method, image in restored.items()}
    first = pair.keys[0]
    figures = VolumeFigures(
        first.cohort,
        first.subject,
        first.kind,
        pair.name,
        tuple(map(str, pair.keys)),
        {method: slice_figures(image) for method, image in images.items()},
        {method: volume_figures(image) for method, image in images.items()},
        {
            method: Trust(
                one.nrmse,
                one.bands,
                np.sqrt(np.square(one.residual, dtype=np.float64).mean(axis=(1, 2))),
                float(doubts[method][head].mean()) if method in doubts and head.any() else None,
                doubts[method].mean(axis=(1, 2), dtype=np.float64) if method in doubts else None,
            )
            for method, one in found.items()
        },
    )
    residuals = {method: one.residual for method, one in found.items()}
    spacing_mm = sampling.grids.geometry.high_spacing_mm
    scan = sampling.scan(cubic)
    return figures, VolumeImages(pair.name, scan, pair.high, restored, residuals, doubts, spacing_mm)


def to_pair(
    restored: NDArray[np.float32], high: NDArray[np.float32], head: NDArray[np.bool_], device: torch.device
) -> ImagePair:
    """Put `(X, Y, Z)` arrays where metrics are computed."""
    return ImagePair(*(torch.from_numpy(array)[:, None].to(device) for array in (restored, high, head)))


def slice_figures(image: ImagePair) -> dict[str, NDArray[np.float64]]:
    """Give slice metric -> `(X,)`."""
    values = {name: METRICS[name].function(image) for name in SLICE_METRICS}
    return {name: torch.as_tensor(value).double().cpu().numpy() for name, value in values.items()}


def volume_figures(image: ImagePair) -> dict[str, float]:
    """Give volume metric -> value."""
    return {name: float(METRICS[name].function(image)) for name in VOLUME_METRICS}
