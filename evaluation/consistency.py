"""Check that a restored volume does not contradict the scan that it was made from.

A restored volume may be sharper than its scan, but sampled as the scanner samples, it must give the scan again. The
check puts the volume through the known low-field sampling and compares the image with the scan: the difference is what
the model changed instead of restoring. Structure beyond the scanner's resolution leaves no trace in the scan, so this
check cannot see it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from upfield.imaging.volume import Volume
from upfield.sharding.building.pairs import Grids
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.shardset.manifest import Manifest

# Upper ends of the bands, as shares of the highest frequency that the low-field grid holds along each axis.
# Beyond 1 the scanner measured nothing.
BANDS = (0.25, 0.5, 1.0)
BAND_NAMES = ("below 1/4", "1/4 to 1/2", "1/2 to 1", "beyond")
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


@dataclass(frozen=True)
class LowFieldSampling:
    """How the low-field scanner samples a volume of a shard set."""

    grids: Grids
    """The low-field and the high-field grid."""
    sigma_vox: float | None
    """Blur of a synthetic scan in voxels of the low-field grid; None for a real scan."""
    gamma: float
    """Darkening of a synthetic scan; 1 for a real scan."""

    @classmethod
    def of(cls, manifest: Manifest, cohort: str, record: dict[str, Any]) -> "LowFieldSampling":
        """Return the sampling of a volume.

        Args:
            manifest: manifest of the shard set.
            cohort: cohort of the volume.
            record: record of any of its samples, with its kind and the parameters of a synthetic scan.
        """
        geometry = GeometryConfig(
            **{name: tuple(values) for name, values in manifest.tree["config"]["geometry"].items()}
        )
        tree = manifest.cohorts[cohort]
        # Slice stacks are resized by default. A pseudonymised set hides its path patterns, so its stacks are treated as
        # volumes. The error is the 2% between aligning corners and aligning edges.
        resized = (tree["fit"] or ("resize" if "{slice}" in tree["high"] else "crop_pad")) == "resize"
        # The position in the world matters for files only. Here both grids are centred on the same volume.
        centre_mm = None if resized else np.zeros(3)
        parameters = record["parameters"] if record["kind"] == "synthetic" else {}
        return cls(Grids(geometry, centre_mm), parameters.get("sigma_vox"), parameters.get("gamma", 1.0))

    def see(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sample a volume as the scanner does, and interpolate the result back to the volume's grid (cubic).

        For a synthetic scan this applies the recorded blur and darkening. For a real scan it averages over the voxels
        of the scan, with a Gaussian whose full width at half maximum is one voxel.

        Args:
            volume: `(X, Y, Z)` in [0, 1] on the high-field grid.

        Returns:
            `(X, Y, Z)` on the same grid.
        """
        geometry = self.grids.geometry
        high_mm, low_mm = np.array(geometry.high_spacing_mm), np.array(geometry.low_spacing_mm)
        if self.sigma_vox is None:
            volume = gaussian(volume, low_mm / high_mm / FWHM_PER_SIGMA)
        affine = np.diag([*high_mm, 1.0])
        low = np.clip(self.grids.high_to_low(Volume(volume, affine)).voxels, 0, 1)
        if self.sigma_vox is not None:
            low = np.clip(gaussian(low, self.sigma_vox), 0, 1) ** np.float32(self.gamma)
        return self.grids.low_to_high(low)

    def scan(self, cubic: NDArray[np.float32]) -> NDArray[np.float32]:
        """Recover the scan's own voxels from its cubic interpolation, and draw each as a block.

        Args:
            cubic: `(X, Y, Z)` in [0, 1] on the high-field grid.

        Returns:
            `(X, Y, Z)` on the same grid, constant within each voxel of the scan.
        """
        affine = np.diag([*self.grids.geometry.high_spacing_mm, 1.0])
        low = self.grids.high_to_low(Volume(cubic, affine)).voxels
        nearest = [np.arange(size) * low.shape[axis] // size for axis, size in enumerate(cubic.shape)]
        return low[np.ix_(*nearest)]


def gaussian(volume: NDArray[np.float32], sigma_vox: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Blur `(I, J, K)` with a Gaussian of one width for all axes, or one per axis."""
    return np.asarray(ndimage.gaussian_filter(volume, sigma_vox), dtype=np.float32)


@dataclass(frozen=True)
class Consistency:
    """How far a volume, sampled as the scanner samples, is from the scan."""

    residual: NDArray[np.float32]
    """`(X, Y, Z)`: the scan minus the sampled volume, in the intensities of the scan, in [-1, 1]."""
    nrmse: float
    """Square root of the residual's energy over the scan's energy."""
    bands: tuple[float, ...]
    """For each band of BAND_NAMES, the residual's energy over the scan's energy (no root)."""


def check_consistency(
    volume: NDArray[np.float32], scan: NDArray[np.float32], sampling: LowFieldSampling
) -> Consistency:
    """Compare a volume with the scan that it was made from.

    Contrast and brightness differ between the two fields, so a straight line is fitted between the intensities first.
    The fit uses only voxels that the set's normalisation has not clipped at 0 or 1; the fitted image is clipped alike.

    Args:
        volume: `(X, Y, Z)` in [0, 1]: the restored volume, or another image on its grid.
        scan: `(X, Y, Z)` in [0, 1]: cubic interpolation of the low-field scan.
        sampling: how the low-field scanner samples.
    """
    seen = sampling.see(volume)
    whole = (scan > 0) & (scan < 1)
    slope, offset = fit_line(seen[whole], scan[whole]) if whole.any() else fit_line(seen, scan)
    expected = np.clip(np.float32(slope) * seen + np.float32(offset), 0, 1)
    residual = np.subtract(scan, expected, dtype=np.float32)
    return Consistency(
        residual,
        float(np.sqrt(energy(residual) / max(energy(scan), 1e-30))),
        band_shares(residual, scan, sampling.grids.geometry),
    )


def fit_line(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[float, float]:
    """Fit the least-squares line from `x` to `y`, arrays of the same shape; return slope and offset.

    A constant `x` gets slope 0.
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
    """Compute the residual's energy over the scan's energy, per band of spatial frequency.

    The radius of a frequency is its length after each component is divided by the highest frequency that the low-field
    grid holds along that axis.

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
