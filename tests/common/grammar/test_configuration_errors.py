from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from upfield.common.command import from_tree
from upfield.common.errors import InputError
from upfield.common.grammar.configuration_errors import describe, problem_of
from upfield.common.grammar.yaml_files import load_yaml


@dataclass(frozen=True)
class Scan:
    """One item of a list."""

    name: str
    """Required."""


@dataclass(frozen=True)
class Schema:
    """A key of each type."""

    count: int = 0
    rate: float = 0.0
    switch: bool = False
    text: str = ""
    path: Path = Path()
    maybe: int | None = 1
    pair: tuple[float, float] = (0.0, 0.0)
    names: list[str | int] = field(default_factory=list)
    fit: Literal["resize", "crop_pad"] | None = None
    precision: Literal["no", "bf16"] = "no"
    space: dict[str, list[Any]] = field(default_factory=dict)
    counts: dict[str, int | list[str]] = field(default_factory=dict)
    meanings: dict[int, int | str] = field(default_factory=dict)
    scans: list[Scan] = field(default_factory=list)


def read(text: str) -> Schema:
    return from_tree(Schema, load_yaml(text), "here")


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    return str(caught.value).removeprefix("here: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("count: 3", 3),
        ("rate: 3", 3.0),
        # YAML 1.1 reads this value as text, and the `no` below as false.
        ("rate: 1e-3", 1e-3),
        ("precision: no", "no"),
        ("switch: true", True),
        ("path: runs/a", Path("runs/a")),
        ("maybe: null", None),
        ("pair: [1, 2.5]", (1.0, 2.5)),
        ("names: [a, 2]", ["a", 2]),
        ("fit: resize", "resize"),
        ("space: {optim.lr: [1, a]}", {"optim.lr": [1, "a"]}),
        ("counts: {val: 2, test: [a]}", {"val": 2, "test": ["a"]}),
        ("scans: [{name: a}]", [Scan("a")]),
    ],
)
def test_values_that_fit_are_accepted(text: str, value: Any) -> None:
    assert getattr(read(text), text.partition(":")[0]) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: two", 'count: expected a whole number, found "two".'),
        ("count: 2.5", "count: expected a whole number, found 2.5."),
        ("count: true", "count: expected a whole number, found true."),
        ("count: null", "count: expected a whole number, found null."),
        ("rate: .nan", "rate: expected a number, found nan."),
        ("rate: -.inf", "rate: expected a number, found -inf."),
        ("rate: fast", 'rate: expected a number, found "fast".'),
        ("text: 12", "text: expected text, found 12. Put it in quotes."),
        ("text: null", "text: expected text, found null."),
        ("pair: [1]", "pair: expected 2 values in brackets, each a number, found [1]."),
        ("pair: [1, .nan]", "pair[1]: expected a number, found nan."),
        ("fit: crop", 'fit: expected resize, crop_pad or null, found "crop" (did you mean crop_pad?).'),
        ("counts: {val: a}", 'counts.val: expected a whole number or a list of text, found "a".'),
        ("counts: {val: null}", "counts.val: expected a whole number or a list of text, found null."),
        ("counts: [2]", "counts: expected keys and values, found [2]."),
        ("meanings: {fat: 900}", "meanings: expected whole numbers as keys, found 'fat'. Write NUMBER: MEANING."),
        ("[1, 2]", "top level: expected keys and values, found [1, 2]."),
        ("scans: [{name: a}, {nam: b}]", "unknown key scans[1].nam (did you mean name?). Known keys: name."),
        ("scans: [{name: a}, {}]", "scans[1]: the key name is missing."),
        ("scans: {name: a}", "scans: expected a list, found the keys name. Begin each item with a dash."),
        ("scans: [a]", 'scans[0]: expected keys and values, found "a".'),
    ],
)
def test_values_that_do_not_fit_are_reported_with_the_expected_value(text: str, message: str) -> None:
    assert refusal(text) == message


def test_a_tree_that_fits_has_no_problem() -> None:
    assert problem_of(load_yaml("{count: 3, scans: [{name: a}]}"), Schema) is None


def test_a_list_of_anything_is_a_list() -> None:
    assert describe(list[Any]) == "a list"
