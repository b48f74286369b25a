"""Measure models and cubic interpolation on the volumes of a split, with the same metrics.

One volume is in memory at a time, so memory does not grow with the number of subjects.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from upfield.common.errors import RunError
from upfield.evaluation.consistency import Consistency, LowFieldSampling, check_consistency
from upfield.evaluation.disagreement import NUM_COPIES, disagreement
from upfield.evaluation.measurements import TrustMeasures, VolumeFailure, VolumeImages, VolumeMeasurements
from upfield.evaluation.metrics import METRICS, SLICE_METRICS, VOLUME_METRICS, ImagePair
from upfield.evaluation.stacked_pairs import StackedPair, read_pair
from upfield.export.scans.restoration import Restorer, restore_volume
from upfield.imaging.head_mask import head_mask
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair


@dataclass(frozen=True)
class MeasurementSettings:
    """The methods to measure, and the batch size and device to measure them with."""

    restorers: Mapping[str, Restorer | None]
    """Method -> restorer; None for cubic interpolation."""
    batch_size: int
    """Number of slices that a model restores at once."""
    perturb: bool
    """Whether to measure disagreement. If so, every slice is restored four times."""
    device: torch.device
    """Device that computes the metrics."""
    advance: Callable[[int], None] = lambda _: None
    """Function that is called with the number of slices of each restored batch."""

    @property
    def passes(self) -> int:
        """Number of times that each slice is restored."""
        num_models = sum(restorer is not None for restorer in self.restorers.values())
        return num_models * (1 + NUM_COPIES if self.perturb else 1)


@dataclass(frozen=True)
class MeasuredVolume:
    """The outcome of measuring one volume."""

    figures: VolumeMeasurements | None = None
    """The measurements; None if every method failed."""
    images: VolumeImages | None = None
    """The images; None if every method failed."""
    failures: tuple[VolumeFailure, ...] = ()
    """The methods that failed."""

    def merge(self, other: "MeasuredVolume") -> "MeasuredVolume":
        """Combine this outcome with that of other methods on the same volume."""
        figures = self.figures.merge(other.figures) if self.figures and other.figures else self.figures or other.figures
        images = self.images.merge(other.images) if self.images and other.images else self.images or other.images
        return MeasuredVolume(figures, images, self.failures + other.failures)


def measure_listed(settings: MeasurementSettings, split: ShardSplit, listed: VolumePair) -> MeasuredVolume:
    """Measure one volume. If that fails, measure each method by itself, so that one failure concerns one method."""
    name = str(listed.first).rpartition("-")[0]
    try:
        sampling = LowFieldSampling.of(split.manifest, listed.first.cohort, split.record(listed.samples[0]))
        # The pair is not assigned to a variable, which would keep its voxels in memory while the next pair is read.
        return MeasuredVolume(*measure_volume(settings, read_pair(split, listed), sampling))
    except Exception as error:
        failures = tuple(VolumeFailure.of(name, method, error) for method in settings.restorers)
    if len(failures) == 1:
        return MeasuredVolume(failures=failures)
    parts = [replace(settings, restorers={method: restorer}) for method, restorer in settings.restorers.items()]
    return reduce(MeasuredVolume.merge, (measure_listed(part, split, listed) for part in parts))


def measure_volume(
    settings: MeasurementSettings, pair: StackedPair, sampling: LowFieldSampling
) -> tuple[VolumeMeasurements, VolumeImages]:
    """Restore and measure one volume.

    Args:
        settings: the methods to measure, the batch size, and the device.
        pair: voxels of the volume and its target.
        sampling: sampling of its low-field scan.

    Raises:
        RunError: a model returns values that are not finite.
    """
    head, cubic = head_mask(pair.high), pair.cubic
    restored: dict[str, NDArray[np.float32]] = {}
    doubts: dict[str, NDArray[np.float32]] = {}
    for method, restorer in settings.restorers.items():
        if restorer is None:
            restored[method] = cubic
            continue
        low = pair.with_neighbours(restorer.context)
        restored[method] = restore_volume(low, restorer, settings.batch_size, settings.advance)
        if not np.isfinite(restored[method]).all():
            raise RunError(f"{pair.name}: the model returned values that are not finite. Train it again.")
        if settings.perturb:
            doubts[method] = disagreement_of(pair.name, low, restored[method], restorer, settings)
    images = {method: to_pair(image, pair.high, head, settings.device) for method, image in restored.items()}
    checks = {method: check_consistency(image, cubic, sampling) for method, image in restored.items()}
    first = pair.keys[0]
    measurements = VolumeMeasurements(
        first.cohort,
        first.subject,
        first.kind,
        pair.name,
        tuple(map(str, pair.keys)),
        {method: slice_values(image) for method, image in images.items()},
        {method: volume_values(image) for method, image in images.items()},
        {method: trust_measures(check, doubts.get(method), head) for method, check in checks.items()},
    )
    residuals = {method: check.residual for method, check in checks.items()}
    spacing_mm = sampling.resampler.geometry.high_spacing_mm
    scan = sampling.scan_blocks(cubic)
    return measurements, VolumeImages(pair.name, scan, pair.high, restored, residuals, doubts, spacing_mm)


def disagreement_of(
    name: str,
    low: NDArray[np.float32],
    restored: NDArray[np.float32],
    restorer: Restorer,
    settings: MeasurementSettings,
) -> NDArray[np.float32]:
    """Compute the standard deviation `(X, Y, Z)` of `restored` and the model's outputs for perturbed input.

    Args:
        name: name of the pair of volumes.
        low: `(X, 1 + 2*context, Y, Z)` in [0, 1].
        restored: `(X, Y, Z)`, the model's output for `low`.
        restorer: the model.
        settings: the batch size.
    """

    def restore(low: NDArray[np.float32]) -> NDArray[np.float32]:
        return restore_volume(low, restorer, settings.batch_size, settings.advance)

    # The seed depends only on the name, so the noise is the same whichever process measures the volume.
    seed = zlib.crc32(name.encode())
    return disagreement(low, restored, restore, seed)


def trust_measures(check: Consistency, doubt: NDArray[np.float32] | None, head: NDArray[np.bool_]) -> TrustMeasures:
    """Summarise the inconsistency and the disagreement of one restored volume.

    Args:
        check: comparison of the volume with its scan.
        doubt: `(X, Y, Z)`, the disagreement; None if it was not measured.
        head: `(X, Y, Z)`, True for voxels of the head.
    """
    return TrustMeasures(
        check.nrmse,
        check.bands,
        np.sqrt(np.square(check.residual, dtype=np.float64).mean(axis=(1, 2))),
        float(doubt[head].mean()) if doubt is not None and head.any() else None,
        doubt.mean(axis=(1, 2), dtype=np.float64) if doubt is not None else None,
    )


def to_pair(
    restored: NDArray[np.float32], high: NDArray[np.float32], head: NDArray[np.bool_], device: torch.device
) -> ImagePair:
    """Copy three `(X, Y, Z)` arrays to the device that computes the metrics."""
    return ImagePair(*(torch.from_numpy(array)[:, None].to(device) for array in (restored, high, head)))


def slice_values(image: ImagePair) -> dict[str, NDArray[np.float64]]:
    """Compute every slice metric: name -> `(X,)`, one value per slice."""
    values = {name: METRICS[name].function(image) for name in SLICE_METRICS}
    return {name: torch.as_tensor(value).double().cpu().numpy() for name, value in values.items()}


def volume_values(image: ImagePair) -> dict[str, float]:
    """Compute every volume metric: name -> value."""
    return {name: float(METRICS[name].function(image)) for name in VOLUME_METRICS}
