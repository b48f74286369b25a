"""The synthetic low field: the law of the report that this follows, with parameters drawn for each volume."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from upfield.sharding.configuration import SyntheticConfig


@dataclass(frozen=True)
class Degradation:
    """What one synthetic low-field volume was made with; recorded with each of its samples."""

    sigma_vox: float
    """Blur, voxels of the low-field grid."""
    gamma: float
    """Darkening exponent."""
    noise_std: float
    """Noise in a black voxel, share of the intensity range."""

    def to_tree(self) -> dict[str, float]:
        """Give the parameters as plain values."""
        return asdict(self)


def generator_for(seed: int, *names: object) -> np.random.Generator:
    """Give a generator that depends on the seed and the names alone, not on the order of work."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *names))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def draw_degradation(ranges: SyntheticConfig, rng: np.random.Generator) -> Degradation:
    """Draw the parameters of one synthetic volume, each uniformly from its range, rounded to what is recorded."""
    sigma_vox, gamma, noise_std = (
        round(float(rng.uniform(*limits)), 6) for limits in (ranges.sigma_vox, ranges.gamma, ranges.noise_std)
    )
    return Degradation(sigma_vox, gamma, noise_std)


def degrade(
    image: NDArray[np.float32], parameters: Degradation, noise_bright_ratio: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Make a synthetic low-field volume: clip(N(G_sigma(I)^gamma), 0, 1), the law of the report we follow.

    Args:
        image: high-field volume on the low-field grid, `(I, J, K)` in [0, 1].
        parameters: blur, darkening and noise.
        noise_bright_ratio: noise in a white voxel relative to a black one.
        rng: draws the noise.

    Returns:
        `(I, J, K)` float32 in [0, 1].
    """
    blurred = np.asarray(ndimage.gaussian_filter(image, parameters.sigma_vox), dtype=np.float32).clip(0, 1)
    dark = blurred ** np.float32(parameters.gamma)
    noise = rng.standard_normal(dark.shape, dtype=np.float32)
    noise *= np.float32(parameters.noise_std) * (1 - np.float32(1 - noise_bright_ratio) * dark)
    return np.clip(dark + noise, 0, 1)
