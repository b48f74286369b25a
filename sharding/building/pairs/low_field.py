"""Make the low field of a synthetic pair from its high field, by the recipe that the configuration chooses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.volume import Volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.generator import generator_for
from upfield.sharding.building.pairs.report_recipe import degrade, draw_degradation
from upfield.sharding.configuration import Recipe, ShardConfig
from upfield.sharding.physics.recipe import simulate
from upfield.sharding.physics.tissue_mixture import HeadTissues, find_tissues
from upfield.sharding.shardset.sample_key import Unit

DEFAULT_CONTRAST = "T1w"


def recipe_of(recipe: Recipe, variant: int) -> Literal["report", "physics"]:
    """Return the recipe of one synthetic variant: `both` begins with `physics` and alternates."""
    if recipe == "both":
        return "report" if variant % 2 else "physics"
    return recipe


def tissues_of(high: Volume, units: Sequence[Unit], contrast: str | None, config: ShardConfig) -> HeadTissues | None:
    """Find the tissues of a high-field scan once for all its units; None if none of them needs the recipe `physics`.

    Args:
        high: the scan on the high-field grid, `(X, Y, Z)` in [0, 1].
        units: the subject's units.
        contrast: contrast of the scan; None if it is not known, which counts as T1w.
        config: the recipe.
    """
    recipe = config.synthetic.recipe_for(maps=False)
    variants = [unit.variant for unit in units if unit.kind != "real"]
    if any(recipe_of(recipe, variant) == "physics" for variant in variants):
        return find_tissues(high, contrast or DEFAULT_CONTRAST)
    return None


def synthetic_low(
    high: Volume,
    resampler: FieldResampler,
    unit: Unit,
    contrast: str | None,
    config: ShardConfig,
    tissues: HeadTissues | None = None,
) -> tuple[Volume, NDArray[np.float32], dict[str, Any]]:
    """Make the low field of a high-field scan.

    Args:
        high: the scan on the high-field grid, `(X, Y, Z)` in [0, 1].
        resampler: resampling between the two grids.
        unit: subject and variant.
        contrast: contrast of the scan; None if it is not known, which counts as T1w.
        config: recipe, ranges, grids and seed.
        tissues: result of `tissues_of`.

    Returns:
        The low field on the grid on which it was made, the same interpolated to the high-field grid `(X, Y, Z)`, and
        everything that was drawn.
    """
    rng = generator_for(config.seed, unit.cohort, unit.subject, unit.variant)
    if recipe_of(config.synthetic.recipe_for(maps=False), unit.variant) == "report":
        return report_low(high, resampler, config, rng)
    low, drawn = simulate(high, config.synthetic.physics, contrast or DEFAULT_CONTRAST, rng, tissues)
    return low, resampler.acquired_to_high(low, high), {"recipe": "physics", **drawn}


def report_low(
    high: Volume, resampler: FieldResampler, config: ShardConfig, rng: np.random.Generator
) -> tuple[Volume, NDArray[np.float32], dict[str, Any]]:
    """Make a low field by the report's recipe; the results are those of `synthetic_low`.

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
