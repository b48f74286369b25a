"""Numbers in tables have signs and decimals, and an undefined number is a dash."""

import math

import pytest

from upfield.evaluation.reports.cells import difference_cells, number_cell


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_undefined_and_infinite_numbers_are_dashes(value: float | None) -> None:
    assert number_cell(value, 2) == "-"


def test_a_difference_has_signs_and_an_interval() -> None:
    difference = {"mean": 1.234, "low": -0.5, "high": 3.0, "p": 0.03125}
    assert difference_cells(difference, 2) == ["+1.23", "-0.50 to +3.00", "0.031"]


def test_a_single_subject_has_a_difference_without_interval() -> None:
    assert difference_cells({"mean": 1.0, "low": None, "high": None, "p": None}, 1) == ["+1.0", "-", "-"]
    assert difference_cells(None, 1) == ["-", "-", "-"]


@pytest.mark.parametrize("value", [-0.0, -0.004])
def test_zero_has_no_minus_sign(value: float) -> None:
    assert number_cell(value, 2) == "0.00"
    assert number_cell(value, 2, "+") == "+0.00"
