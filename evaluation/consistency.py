"""Does the restored volume still say what the scanner measured? Sampled as the scanner samples, it must.

A restored volume may be sharper than its input, but what the input holds it must not contradict. It is put through the
known low-field sampling, which gives an image to compare with the input; what is left between the two was changed, not
restored. What lies beyond the scanner's resolution leaves no trace there: this test cannot see it.
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

# Of the radius at which the coarsest sampling along each axis ends; beyond 1 the scanner measured nothing.
BANDS = (0.25, 0.5, 1.0)
BAND_NAMES = ("below 1/4", "1/4 to 1/2", "1/2 to 1", "beyond")
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


@dataclass(frozen=True)
class LowFieldSampling:
    """How a volume of a set is seen by the low-field scanner."""

    grids: Grids
    """The two grids."""
    sigma_vox: float | None
    """Blur of a synthetic scan in voxels of the low-field grid; None for a real one."""
    gamma: float
    """Darkening of a synthetic scan."""

    @classmethod
    def of(cls, manifest: Manifest, cohort: str, record: dict[str, Any]) -> "LowFieldSampling":
        """Give the sampling of a volume.

        Args:
            manifest: of its set.
            cohort: its cohort.
            record: of any of its samples: kind, and what a synthetic one was made with.
        """
        geometry = GeometryConfig(
            **{name: tuple(values) for name, values in manifest.tree["config"]["geometry"].items()}
        )
        tree = manifest.cohorts[cohort]
        # Slice stacks are resized by default. A pseudonymised set hides its patterns; its stacks are taken for volumes,
        # which puts them right but for the 2% between corners and edges.
        resized = (tree["fit"] or ("resize" if "{slice}" in tree["high"] else "crop_pad")) == "resize"
        # Where the boxes lie in the world matters to files alone; here both are centred on the same volume.
        centre_mm = None if resized else np.zeros(3)
        parameters = record["parameters"] if record["kind"] == "synthetic" else {}
        return cls(Grids(geometry, centre_mm), parameters.get("sigma_vox"), parameters.get("gamma", 1.0))

    def see(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Put a volume `(X, Y, Z)` in [0, 1] through the sampling, and up again to its own grid by cubic interpolation.

        A synthetic scan has its recorded blur and darkening; a real one is averaged over its voxels, by a Gaussian as
        wide at half height as a voxel.
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
        """Give the voxels that the scanner gave, each as the block it is, `(X, Y, Z)`, from their interpolation."""
        affine = np.diag([*self.grids.geometry.high_spacing_mm, 1.0])
        low = self.grids.high_to_low(Volume(cubic, affine)).voxels
        nearest = [np.arange(size) * low.shape[axis] // size for axis, size in enumerate(cubic.shape)]
        return low[np.ix_(*nearest)]


def gaussian(volume: NDArray[np.float32], sigma_vox: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Blur `(I, J, K)` by a Gaussian of one width, or of one per axis."""
    return np.asarray(ndimage.gaussian_filter(volume, sigma_vox), dtype=np.float32)


@dataclass(frozen=True)
class Consistency:
    """How far a volume, seen by the scanner, is from what the scanner gave."""

    residual: NDArray[np.float32]
    """`(X, Y, Z)`: the scanner's image minus the volume's, in the intensities of the input, [-1, 1]."""
    nrmse: float
    """Its energy's share of the input's, square root of."""
    bands: tuple[float, ...]
    """Per band of BAND_NAMES: the residual's energy over the input's."""


def check_consistency(
    volume: NDArray[np.float32], scan: NDArray[np.float32], sampling: LowFieldSampling
) -> Consistency:
    """Compare a volume with the scan that it was made from.

    Contrast and brightness differ between the two fields, so a straight line is fitted between the intensities first,
    over voxels that the set's scaling has not cut off at 0 or 1, and cut off like them.

    Args:
        volume: `(X, Y, Z)` in [0, 1]: restored, or anything else on its grid.
        scan: `(X, Y, Z)` in [0, 1]: cubic interpolation of the low-field scan.
        sampling: of the scan.
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
    """Give slope and offset of the least squares line from `x` to `y`, of one shape; a constant `x` has slope 0."""
    mean_x, mean_y = x.mean(dtype=np.float64), y.mean(dtype=np.float64)
    centred = x - np.float32(mean_x)
    spread = energy(centred)
    slope = float(np.vdot(centred, y - np.float32(mean_y)) / spread) if spread > 0 else 0.0
    return slope, float(mean_y - slope * mean_x)


def energy(image: NDArray[np.float32]) -> float:
    """Give the sum of squares of an image of any shape."""
    return float(np.square(image, dtype=np.float64).sum())


def band_shares(
    residual: NDArray[np.float32], scan: NDArray[np.float32], geometry: GeometryConfig
) -> tuple[float, ...]:
    """Give, per band of spatial frequency, the residual's energy over the scan's, both `(X, Y, Z)`.

    A frequency's radius is its length in units of what each axis of the low-field grid can hold.
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
    """Give the energy of each spatial frequency of `(X, Y, Z)`, its mean left out."""
    return np.square(np.abs(np.asarray(fft.rfftn(image - image.mean()))))
