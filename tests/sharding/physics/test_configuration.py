"""Contradictions among the ranges of the physics recipe."""

from dataclasses import fields

import pytest

from upfield.sharding.physics.configuration import LIMITS, RATES, PhysicsConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"snr": (40, 10)}, r"physics\.snr: the first value, 40, exceeds the second, 10\. Swap them\."),
        ({"thickness_mm": (1.0, 5.0)}, r"thinnest slice, 1\.0 mm, is thinner than the largest voxel .* Raise"),
        ({"in_plane_mm": (0.0, 1.0)}, r"in_plane_mm: expected two values from 0\.2 to 10, found \[0, 1\]"),
        ({"taper": (0.0, 1.5)}, r"taper: expected two values from 0 to 1"),
        ({"slice_axis": (0.5, 0.5, 0.5)}, r"slice_axis: expected three probabilities that sum to 1"),
        ({"motion_rate": 1.2}, r"motion_rate: expected 0\.\.1, found 1\.2"),
        ({"relaxation_spread": -1.0}, r"relaxation_spread: expected 0\.\.3"),
        (
            {"flair_ti_ms": (1300.0, 3500.0)},
            r"flair_tr_ms: the shortest repetition, 3600\.0 ms, ends before the last echo",
        ),
        ({"snr": (float("nan"), 10.0)}, r"snr: expected two values"),
    ],
)
def test_ranges_that_contradict_themselves_or_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PhysicsConfig(**values)


def test_a_low_field_finer_than_the_high_field_is_refused():
    config = PhysicsConfig(in_plane_mm=(1.0, 1.5))
    config.refuse_finer_than((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"1\.0 mm would be finer than the high field, whose voxels measure 1\.2 mm"):
        config.refuse_finer_than((1.0, 1.2, 1.0))


def test_every_field_is_checked():
    assert {field.name for field in fields(PhysicsConfig)} == {*LIMITS, *RATES, "slice_axis", "relaxation_spread"}
