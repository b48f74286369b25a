"""Augmentation of pairs: a pure function of (seed, epoch, sample), and therefore the same in every process and thread.

With a mix, an epoch may repeat a sample, so the position in the epoch is a further argument.

Changes of geometry apply to both images of a pair. Changes of intensity apply only to the low field, because its
intensity scale differs between scanners.
"""

import numpy as np
from numpy.typing import NDArray

from upfield.distributed.configuration import AugmentConfig, DegradeConfig
from upfield.distributed.samples.degrade import degrade


def augment_pair(
    low: NDArray[np.float16], high: NDArray[np.float16], config: AugmentConfig, key: tuple[int, ...]
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return an augmented copy of a pair.

    Args:
        low: `(1 + 2*context, H, W)` in [0, 1].
        high: `(1, H, W)` in [0, 1].
        config: ranges of the random changes.
        key: seed of the run, number of the epoch, number of the sample, and with a mix the position in the epoch.

    Returns:
        `low` and `high` in [0, 1], of size `config.crop` if it is set, otherwise of their original size.
    """
    # All random numbers are always drawn, so that enabling one change does not alter the others.
    rng = np.random.default_rng(key)
    down, across = rng.integers(-config.shift_pixels, config.shift_pixels, size=2, endpoint=True)
    gain, exponent = rng.uniform(-config.intensity_jitter, config.intensity_jitter, size=2)
    place = rng.random(2)
    low, high = (_shift(image, int(down), int(across)) for image in (low, high))
    low, high = (_crop(image, config.crop, place) for image in (low, high))
    if config.intensity_jitter:
        jittered = (1 + gain) * low.astype(np.float32) ** np.exp(exponent)
        low = np.clip(jittered, 0, 1).astype(np.float16)
    if config.degrade != DegradeConfig():
        low = degrade(low, config.degrade, key)
    return low, high


def _shift(image: NDArray[np.float16], down: int, across: int) -> NDArray[np.float16]:
    """Move `image` `(S, H, W)` by whole pixels, and fill the rest with 0, the value of air."""
    _, height, width = image.shape
    moved = np.zeros_like(image)
    target = np.s_[:, max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)]
    source = np.s_[:, max(-down, 0) : height + min(-down, 0), max(-across, 0) : width + min(-across, 0)]
    moved[target] = image[source]
    return moved


def _crop(image: NDArray[np.float16], size: tuple[int, int] | None, place: NDArray[np.float64]) -> NDArray[np.float16]:
    """Crop `image` `(S, H, W)` to `size` at the relative position `place` `(2,)` in [0, 1)."""
    if size is None:
        return image
    top, left = (int(at * (length - part + 1)) for at, length, part in zip(place, image.shape[1:], size, strict=True))
    return image[:, top : top + size[0], left : left + size[1]]
