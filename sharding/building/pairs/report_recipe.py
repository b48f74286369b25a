"""Make synthetic low-field volumes by the formula of the report that we follow; each volume gets random parameters."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.sharding.configuration import SyntheticConfig


@dataclass(frozen=True)
class Degradation:
    """The parameters of one synthetic low-field volume, recorded with each of its samples."""

    sigma_vox: float
    """Standard deviation of the blur, in voxels of the low-field grid."""
    gamma: float
    """Darkening exponent."""
    noise_std: float
    """Standard deviation of the noise in a black voxel, as a share of the intensity range."""

    def to_tree(self) -> dict[str, float]:
        """Return the parameters as plain values."""
        return asdict(self)


def draw_degradation(ranges: SyntheticConfig, rng: np.random.Generator) -> Degradation:
    """Draw the parameters of one synthetic volume, each uniformly from its range, rounded to the recorded precision."""
    sigma_vox, gamma, noise_std = (
        round(float(rng.uniform(*limits)), 6) for limits in (ranges.sigma_vox, ranges.gamma, ranges.noise_std)
    )
    return Degradation(sigma_vox, gamma, noise_std)


def degrade(
    image: NDArray[np.float32], parameters: Degradation, noise_bright_ratio: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Make a synthetic low-field volume: clip(N(G_sigma(I)^gamma), 0, 1), the formula of the report we follow.

    Args:
        image: high-field volume on the low-field grid, `(I, J, K)` in [0, 1].
        parameters: blur, darkening and noise.
        noise_bright_ratio: noise in a white voxel relative to a black one.
        rng: generator that draws the noise.

    Returns:
        `(I, J, K)` float32 in [0, 1].
    """
    blurred = np.asarray(ndimage.gaussian_filter(image, parameters.sigma_vox), dtype=np.float32).clip(0, 1)
    dark = blurred ** np.float32(parameters.gamma)
    noise = rng.standard_normal(dark.shape, dtype=np.float32)
    noise *= np.float32(parameters.noise_std) * (1 - np.float32(1 - noise_bright_ratio) * dark)
    return np.clip(dark + noise, 0, 1)
