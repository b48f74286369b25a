"""Make the low field of a synthetic pair from its high field, by the law that the configuration chooses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.volume import Volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.generator import generator_for
from upfield.sharding.building.pairs.report_recipe import degrade, draw_degradation
from upfield.sharding.configuration import Law, ShardConfig
from upfield.sharding.physics.recipe import simulate
from upfield.sharding.physics.tissue_mixture import HeadTissues, find_tissues
from upfield.sharding.shardset.sample_key import Unit

DEFAULT_CONTRAST = "T1w"
# A low field on the grid on which it was made, the same on the high-field grid `(X, Y, Z)`, and everything drawn.
LowField = tuple[Volume, NDArray[np.float32], dict[str, Any]]


def tissues_of(high: Volume, units: Sequence[Unit], contrast: str | None, config: ShardConfig) -> HeadTissues | None:
    """Find the tissues of a high-field scan once for all its units; None if none of them needs the law `physics`.

    Args:
        high: the scan on the high-field grid, `(X, Y, Z)` in [0, 1].
        units: the subject's units.
        contrast: contrast of the scan; None if it is not known, which counts as T1w.
        config: the laws.
    """
    variants = [unit.variant for unit in units if unit.kind != "real"]
    if any(config.synthetic.law(variant, maps=False) == "physics" for variant in variants):
        return find_tissues(high, contrast or DEFAULT_CONTRAST)
    return None


def synthetic_low(
    high: Volume,
    resampler: FieldResampler,
    unit: Unit,
    contrast: str | None,
    config: ShardConfig,
    tissues: HeadTissues | None = None,
) -> LowField:
    """Make the low field of a high-field scan.

    Args:
        high: the scan on the high-field grid, `(X, Y, Z)` in [0, 1].
        resampler: resampling between the two grids.
        unit: subject and variant.
        contrast: contrast of the scan; None if it is not known, which counts as T1w.
        config: law, ranges, grids and seed.
        tissues: result of `tissues_of`.

    Returns:
        The low field on the grid on which it was made, the same interpolated to the high-field grid `(X, Y, Z)`, and
        everything that was drawn.
    """
    rng = generator_for(config.seed, unit.cohort, unit.subject, unit.variant)
    if law := IMAGE_LAWS.get(config.synthetic.law(unit.variant, maps=False)):
        return law(high, resampler, config, rng)
    low, drawn = simulate(high, config.synthetic.physics, contrast or DEFAULT_CONTRAST, rng, tissues)
    return low, resampler.acquired_to_high(low, high), {"recipe": "physics", **drawn}


def report_low(high: Volume, resampler: FieldResampler, config: ShardConfig, rng: np.random.Generator) -> LowField:
    """Make a low field by the report's law; the results are those of `synthetic_low`.

    Args:
        high: the high field on its grid, `(X, Y, Z)` in [0, 1].
        resampler: resampling between the two grids.
        config: ranges and grids.
        rng: generator that draws the parameters and the noise.
    """
    parameters = draw_degradation(config.synthetic, rng)
    small = resampler.high_to_low(high, average=config.geometry.average)
    voxels = degrade(np.clip(small.voxels, 0, 1), parameters, config.synthetic.noise_bright_ratio, rng)
    return replace(small, voxels=voxels), resampler.low_to_high(voxels), parameters.to_tree()


# The laws that need nothing but the image of the high field, of a scan or of a rendered head.
IMAGE_LAWS: dict[Law, Callable[[Volume, FieldResampler, ShardConfig, np.random.Generator], LowField]] = {
    "report": report_low,
}
