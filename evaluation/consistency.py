"""Check that a restored volume does not contradict the scan that it was made from.

A restored volume may be sharper than its scan. But if it is sampled as the scanner samples a head, the result must
equal the scan. The check applies the known low-field sampling to the restored volume and compares the result with the
scan. Any difference is content that the model changed or invented. Structure finer than the scanner's resolution leaves
no trace in the scan, so this check cannot detect it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from upfield.imaging.volume import Volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.physics.acquisition import acquired_shape
from upfield.sharding.shardset.manifest import Manifest

# Upper limits of the bands, relative to the highest frequency that the low-field grid can hold along each axis.
# The scan contains no measured frequency beyond 1.
BANDS = (0.25, 0.5, 1.0)
BAND_NAMES = ("below 1/4", "1/4 to 1/2", "1/2 to 1", "beyond")
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


@dataclass(frozen=True)
class LowFieldSampling:
    """The sampling that turns a high-field volume of a shard set into its low-field scan."""

    resampler: FieldResampler
    """Resampling between the low-field and the high-field grid."""
    sigma_vox: float | None
    """Blur of a scan that the report's recipe made, in voxels of the low-field grid; None for other scans."""
    gamma: float
    """Exponent of the gamma correction that darkened such a scan; 1 for other scans."""

    @classmethod
    def of(cls, manifest: Manifest, cohort: str, record: dict[str, Any]) -> "LowFieldSampling":
        """Look up the sampling of a volume's scan in the manifest and in the record of one of its samples.

        Args:
            manifest: manifest of the shard set.
            cohort: cohort of the volume.
            record: record of any of the volume's samples: its kind, and the parameters of a synthetic scan.
        """
        geometry = GeometryConfig.from_tree(manifest.geometry)
        tree = manifest.cohorts[cohort]
        # Slice stacks are resized by default. A pseudonymised set hides its path patterns, so its stacks are treated as
        # volumes. Such a stack is then aligned at its edges instead of its corners, which is an error of 2%.
        stacked = "{slice}" in (tree["high"] or "")
        resized = (tree["fit"] or ("resize" if stacked else "crop_pad")) == "resize"
        # World coordinates are not needed here, so both grids are centred on the same point.
        centre_mm = None if resized else np.zeros(3)
        parameters = record["parameters"] if record["kind"] == "synthetic" else {}
        if "spacing_mm" in parameters:
            geometry = _acquired_geometry(geometry, parameters["spacing_mm"])
        return cls(FieldResampler(geometry, centre_mm), parameters.get("sigma_vox"), parameters.get("gamma", 1.0))

    def sample(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sample a volume as the scanner does, and interpolate the result to the volume's grid (cubic).

        For a scan that the report's recipe made, this applies the recorded blur and darkening. For a real scan and for
        one of the physics recipe, it averages with a Gaussian whose full width at half maximum is one voxel of the
        scan.

        Args:
            volume: `(X, Y, Z)` in [0, 1] on the high-field grid.

        Returns:
            `(X, Y, Z)` on the same grid.
        """
        geometry = self.resampler.geometry
        high_mm, low_mm = np.array(geometry.high_spacing_mm), np.array(geometry.low_spacing_mm)
        if self.sigma_vox is None:
            volume = gaussian(volume, low_mm / high_mm / FWHM_PER_SIGMA)
        affine = np.diag([*high_mm, 1.0])
        # A real scan has been averaged by the Gaussian.
        average = geometry.average and self.sigma_vox is not None
        low = np.clip(self.resampler.high_to_low(Volume(volume, affine), average=average).voxels, 0, 1)
        if self.sigma_vox is not None:
            low = np.clip(gaussian(low, self.sigma_vox), 0, 1) ** np.float32(self.gamma)
        return self.resampler.low_to_high(low)

    def scan_blocks(self, cubic: NDArray[np.float32]) -> NDArray[np.float32]:
        """Recover the voxels of the scan from its cubic interpolation, and draw each one as a block.

        Args:
            cubic: `(X, Y, Z)` in [0, 1] on the high-field grid.

        Returns:
            `(X, Y, Z)` on the same grid, constant within each voxel of the scan.
        """
        affine = np.diag([*self.resampler.geometry.high_spacing_mm, 1.0])
        low = self.resampler.high_to_low(Volume(cubic, affine)).voxels
        nearest = [np.arange(size) * low.shape[axis] // size for axis, size in enumerate(cubic.shape)]
        return low[np.ix_(*nearest)]


def _acquired_geometry(geometry: GeometryConfig, spacing_mm: Sequence[float]) -> GeometryConfig:
    """Replace the low-field grid by the one on which a simulated scanner measured: the same box in other voxels."""
    first, second, third = spacing_mm
    shape = acquired_shape(geometry.high_size_mm, spacing_mm)
    return replace(geometry, low_shape=shape, low_spacing_mm=(first, second, third))


def gaussian(volume: NDArray[np.float32], sigma_vox: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Blur `(I, J, K)` with a Gaussian of one width for all axes, or one per axis."""
    return np.asarray(ndimage.gaussian_filter(volume, sigma_vox), dtype=np.float32)


@dataclass(frozen=True)
class Consistency:
    """Result of comparing a volume, sampled as the scanner samples, with the scan."""

    residual: NDArray[np.float32]
    """`(X, Y, Z)`: the scan minus the sampled volume, in the intensities of the scan, in [-1, 1]."""
    nrmse: float
    """Square root of the residual's energy divided by the scan's energy."""
    bands: tuple[float, ...]
    """For each band of BAND_NAMES, the residual's energy divided by the scan's energy (without the root)."""


def check_consistency(
    volume: NDArray[np.float32], scan: NDArray[np.float32], sampling: LowFieldSampling
) -> Consistency:
    """Compare a volume with the scan that it was made from.

    Contrast and brightness differ between the two fields, so the function first fits a straight line that maps the
    intensities of the sampled volume to those of the scan. The fit leaves out voxels that the set's normalisation
    clipped to 0 or 1. The mapped intensities are clipped to [0, 1] too.

    Args:
        volume: `(X, Y, Z)` in [0, 1]; the restored volume, or another image on its grid.
        scan: `(X, Y, Z)` in [0, 1]; cubic interpolation of the low-field scan.
        sampling: the low-field sampling of the scan.
    """
    sampled = sampling.sample(volume)
    unclipped = (scan > 0) & (scan < 1)
    slope, offset = fit_line(sampled[unclipped], scan[unclipped]) if unclipped.any() else fit_line(sampled, scan)
    expected = np.clip(np.float32(slope) * sampled + np.float32(offset), 0, 1)
    residual = np.subtract(scan, expected, dtype=np.float32)
    return Consistency(
        residual,
        float(np.sqrt(energy(residual) / max(energy(scan), 1e-30))),
        band_shares(residual, scan, sampling.resampler.geometry),
    )


def fit_line(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[float, float]:
    """Fit a least-squares line from `x` to `y`, two arrays of the same shape, and return slope and offset.

    If `x` is constant, the slope is 0.
    """
    mean_x, mean_y = x.mean(dtype=np.float64), y.mean(dtype=np.float64)
    centred = x - np.float32(mean_x)
    spread = energy(centred)
    slope = float(np.vdot(centred, y - np.float32(mean_y)) / spread) if spread > 0 else 0.0
    return slope, float(mean_y - slope * mean_x)


def energy(image: NDArray[np.float32]) -> float:
    """Compute the sum of squares of an image of any shape."""
    return float(np.square(image, dtype=np.float64).sum())


def band_shares(
    residual: NDArray[np.float32], scan: NDArray[np.float32], geometry: GeometryConfig
) -> tuple[float, ...]:
    """Compute the residual's energy divided by the scan's energy, for each band of spatial frequency.

    To find the band of a frequency, each of its components is divided by the highest frequency that the low-field grid
    can hold along that axis. The length of the resulting vector is compared with BANDS.

    Args:
        residual: `(X, Y, Z)`.
        scan: `(X, Y, Z)`.
        geometry: spacings of the two grids.

    Returns:
        One share for each band of BAND_NAMES.
    """
    radius_squared = np.zeros(1, dtype=np.float32)
    for axis, size in enumerate(scan.shape):
        frequency = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
        limit = 0.5 * geometry.high_spacing_mm[axis] / geometry.low_spacing_mm[axis]
        shape = [1, 1, 1]
        shape[axis] = -1
        radius_squared = radius_squared + np.square(frequency / limit).astype(np.float32).reshape(shape)
    band = np.searchsorted(np.square(BANDS), radius_squared, side="right").ravel()
    energies = [np.bincount(band, _spectrum(image).ravel(), minlength=len(BAND_NAMES)) for image in (residual, scan)]
    return tuple((energies[0] / np.maximum(energies[1], 1e-30)).tolist())


def _spectrum(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the energy of each spatial frequency of `(X, Y, Z)`, after subtracting the mean."""
    return np.square(np.abs(np.asarray(fft.rfftn(image - image.mean()))))
