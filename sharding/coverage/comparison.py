"""Compare the measures of a real scan with those of synthetic volumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upfield.sharding.coverage.advice import Advice, advise
from upfield.sharding.coverage.measures import MEASURES, Measure, Values

# With fewer volumes, the 5th and 95th percentile say nothing.
LEAST_VOLUMES = 5
RANGE = (5.0, 95.0)


@dataclass(frozen=True)
class Distribution:
    """The measures of synthetic volumes of one recipe and contrast."""

    recipe: str
    """Their recipe."""
    contrast: str | None
    """Their contrast; None if it is not known."""
    volumes: list[Values]
    """The measures of each volume."""

    @property
    def title(self) -> str:
        """Name for tables: the recipe and the contrast."""
        return f"{self.recipe}, {self.contrast}" if self.contrast else self.recipe

    def of(self, measure: str) -> list[float]:
        """Return the values of one measure, without volumes on which it could not be measured."""
        return [value for values in self.volumes if (value := values[measure]) is not None]


@dataclass(frozen=True)
class MeasureCoverage:
    """Where one measure of a scan lies among those of synthetic volumes."""

    measure: Measure
    """The measure."""
    value: float | None
    """Its value for the scan; None if it could not be measured."""
    limits: tuple[float, float] | None
    """5th and 95th percentile of the synthetic volumes; None if too few of them could be measured."""
    percentile: float | None
    """Share of the synthetic volumes with a smaller value, in percent."""
    advice: Advice | None
    """What to change if the scan lies outside; None if it lies inside or this is not known."""

    @property
    def is_inside(self) -> bool | None:
        """Whether the scan lies between the 5th and the 95th percentile; None if this is not known."""
        if self.value is None or self.limits is None:
            return None
        return self.limits[0] <= self.value <= self.limits[1]


@dataclass(frozen=True)
class ScanCoverage:
    """How synthetic volumes of one recipe cover a scan."""

    distribution: Distribution
    """The synthetic volumes."""
    measures: list[MeasureCoverage]
    """All measures, in order."""

    def count(self, is_inside: bool | None) -> int:
        """Return the number of measures inside (True), outside (False), or not known (None)."""
        return sum(measure.is_inside is is_inside for measure in self.measures)


def compare(values: Values, distribution: Distribution, config: Mapping[str, Any]) -> ScanCoverage:
    """Compare the measures of a scan with those of synthetic volumes.

    Args:
        values: measures of the scan.
        distribution: synthetic volumes.
        config: configuration of the set, as plain values.
    """
    return ScanCoverage(
        distribution,
        [_compare(measure, values[measure.name], distribution, config) for measure in MEASURES],
    )


def _compare(
    measure: Measure, value: float | None, distribution: Distribution, config: Mapping[str, Any]
) -> MeasureCoverage:
    synthetic = np.array(distribution.of(measure.name))
    if len(synthetic) < LEAST_VOLUMES:
        return MeasureCoverage(measure, value, None, None, None)
    least, most = (float(limit) for limit in np.percentile(synthetic, RANGE))
    if value is None:
        return MeasureCoverage(measure, None, (least, most), None, None)
    percentile = 100 * float(np.mean(synthetic < value) + np.mean(synthetic == value) / 2)
    outside = not least <= value <= most
    advice = advise(distribution.recipe, measure.name, value > most, config) if outside else None
    return MeasureCoverage(measure, value, (least, most), percentile, advice)


def matching(contrast: str | None, distributions: Sequence[Distribution]) -> list[Distribution]:
    """Return, for each recipe, the distribution of a scan's contrast, or else all distributions of the recipe in one.

    Args:
        contrast: contrast of the scan; None if it is not known.
        distributions: one for each recipe and contrast of the set.
    """
    found: list[Distribution] = []
    for recipe in sorted({each.recipe for each in distributions}):
        own = [each for each in distributions if each.recipe == recipe]
        same = [each for each in own if contrast is not None and each.contrast == contrast]
        if same or len(own) == 1:
            found.append((same or own)[0])
        else:
            found.append(Distribution(recipe, None, [values for each in own for values in each.volumes]))
    return [each for each in found if len(each.volumes) >= LEAST_VOLUMES]
