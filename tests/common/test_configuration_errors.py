from pathlib import Path
from typing import Any, Literal

import pytest

from upfield.common.value_types import describe, is_plain, misfit

SPLIT = dict[str, int | float | list[str | int]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, int),
        (3, float),
        ("1e-3", float),
        (True, bool),
        ("runs/a", Path),
        (None, int | None),
        ([1, 2.5], tuple[float, float]),
        (["a", 2], list[str | int]),
        ("resize", Literal["resize", "crop_pad"]),
        # YAML 1.1 reads a bare no so.
        (False, Literal["no", "bf16"]),
        ({"val": 2, "test": ["a"]}, SPLIT),
        ({"optim.lr": [1, "a"]}, dict[str, list[Any]]),
    ],
)
def test_values_that_fit(value, kind):
    assert misfit(value, kind) is None


@pytest.mark.parametrize(
    ("value", "kind", "where", "said"),
    [
        ("two", int, "", 'expected a whole number, found "two"'),
        (2.5, int, "", "expected a whole number, found 2.5"),
        (True, int, "", "expected a whole number, found true"),
        (float("nan"), float, "", "expected a number, found NaN"),
        ("fast", float, "", 'expected a number, found "fast"'),
        (12, str, "", "expected text, found 12; put it in quotes"),
        (None, str, "", "expected text, found null"),
        ([1], tuple[float, float], "", "expected 2 values in brackets, each a number, found [1]"),
        ("crop", Literal["resize", "crop_pad"] | None, "", 'expected resize or crop_pad or null, found "crop"'),
        ({"val": "02"}, SPLIT, ".val", 'expected a number or a list of text or a whole number, found "02"'),
        ({"val": None}, SPLIT, ".val", "expected a number or a list of text or a whole number, found null"),
        ([2], SPLIT, "", "expected keys and values, found [2]"),
    ],
)
def test_values_that_do_not_are_told_with_what_was_expected(value, kind, where, said):
    assert misfit(value, kind) == (where, said)


def test_only_kinds_without_free_text_are_plain():
    assert all(map(is_plain, (int, bool | None, Literal["a"], tuple[float, float])))
    assert not any(map(is_plain, (str, Path, str | None, list[int], int | str)))


def test_a_list_of_anything_is_a_list():
    assert describe(list[Any]) == "a list"
