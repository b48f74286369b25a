from dataclasses import fields, is_dataclass

import pytest

from upfield.common.command import to_tree
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.coverage.advice import LEVERS, advise
from upfield.sharding.coverage.comparison import Distribution, compare, matching
from upfield.sharding.coverage.measures import MEASURES
from upfield.sharding.physics.configuration import PhysicsConfig

CONFIG = to_tree(ShardConfig("out"))
HUNDRED = Distribution("report", "T1w", [{each.name: number / 100 for each in MEASURES} for number in range(101)])


def at(value):
    return next(each for each in compare(dict.fromkeys((m.name for m in MEASURES), value), HUNDRED, CONFIG).measures)


@pytest.mark.parametrize(
    ("value", "is_inside", "percentile"), [(0.049, False, 5), (0.051, True, 6), (0.949, True, 94), (0.951, False, 95)]
)
def test_inside_is_between_the_5th_and_the_95th_percentile(value, is_inside, percentile):
    found = at(value)
    assert found.limits == pytest.approx((0.05, 0.95))
    assert found.is_inside is is_inside
    assert found.percentile == pytest.approx(percentile, abs=1)
    assert (found.advice is None) == is_inside


def test_advice_points_in_the_direction_of_the_scan():
    above, below = at(2.0).advice, at(-1.0).advice
    assert above
    assert above.change == "raise the upper end of synthetic.noise_std (0.05)"
    assert below
    assert below.change == "lower the lower end of synthetic.noise_std (0.01)"
    assert advise("report", "snr", True, CONFIG).change == "lower the lower end of synthetic.noise_std (0.01)"


def test_the_size_of_heads_can_be_changed_if_they_are_rendered():
    assert advise("report", "fill_x", True, CONFIG).key is None
    maps = {"cohorts": [{"labels": "{subject}.nii.gz", "recipe": "physics", "heads": {"scale": [0.9, 1.1]}}]}
    assert advise("physics", "fill_x", True, maps).change == "raise the upper end of synthetic.heads.scale (1.1)"
    assert advise("report", "fill_x", True, maps).key is None


def test_a_measure_that_is_missing_is_neither_inside_nor_outside():
    assert at(None).is_inside is None
    few = Distribution("report", None, HUNDRED.volumes[:4])
    assert compare(HUNDRED.volumes[0], few, CONFIG).measures[0].is_inside is None


@pytest.mark.parametrize("recipe", LEVERS)
def test_advice_names_keys_that_exist(recipe):
    for measure in MEASURES:
        for is_above in (True, False):
            advice = advise(recipe, measure.name, is_above, CONFIG)
            place, key = ShardConfig("out"), advice.key or ""
            if key.startswith("synthetic.physics."):
                place, key = PhysicsConfig(), key.removeprefix("synthetic.physics.")
            for name in filter(None, key.split(".")):
                assert is_dataclass(place)
                assert name in {field.name for field in fields(place)}, advice.key
                place = getattr(place, name)


def test_a_scan_is_compared_with_volumes_of_its_contrast_if_there_are_any():
    other = Distribution("report", "T2w", HUNDRED.volumes[:50])
    assert matching("T2w", [HUNDRED, other]) == [other]
    (both,) = matching("FLAIR", [HUNDRED, other])
    assert (both.contrast, len(both.volumes)) == (None, 151)
