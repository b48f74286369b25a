import pytest

from upfield.imaging.plausibility.field_strength import strength_doubt


@pytest.mark.parametrize("strength", [0.55, 1.5, 3, 7.0])
def test_a_stated_high_field_is_a_doubt(strength):
    assert f"a field of {strength:g} T" in (strength_doubt({"MagneticFieldStrength": strength}) or "")


@pytest.mark.parametrize(
    "sidecar", [None, [], {}, *({"MagneticFieldStrength": value} for value in (0.064, 64, "3", None))]
)
def test_a_low_field_or_what_is_no_field_is_none(sidecar):
    assert strength_doubt(sidecar) is None
