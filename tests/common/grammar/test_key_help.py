import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from upfield.common.grammar.key_help import describe_keys, kind_words
from upfield.distributed.configuration import TrainConfig
from upfield.sharding.configuration import ShardConfig


@dataclass(frozen=True)
class Access:
    """How to read."""

    retries: int = 5
    """Number of retries."""

    title = "Access"


@dataclass(frozen=True)
class Step:
    """A step."""

    lr: float = 0.1
    """Step size. It is positive."""


@dataclass(frozen=True)
class Job(Access):
    """Do something."""

    files: list[Path] = field(kw_only=True)
    """The files,
    in order."""
    step: Step = field(default_factory=lambda: Step(lr=0.5))
    """How to step. There is one step."""
    quick: bool = False
    """Leave half out."""


def test_keys_have_their_type_default_and_doc_in_words():
    files, quick, lr, retries = describe_keys(Job)
    assert (files.key, files.kind, files.state, files.doc) == (
        "files",
        "list of paths",
        "required",
        "The files, in order.",
    )
    assert (quick.kind, quick.state, quick.group) == ("true or false", "default false", "")
    assert (lr.key, lr.state, lr.group) == ("step.lr", "default 0.5", "How to step")
    assert (retries.key, retries.group) == ("retries", "Access")


def test_the_items_of_a_list_have_keys_of_their_own():
    keys = {each.key: each for each in describe_keys(ShardConfig)}
    assert keys["cohorts[].name"].is_required
    assert keys["cohorts[].name"].group == "Each item of `cohorts`"


@pytest.mark.parametrize("schema", [ShardConfig, TrainConfig])
def test_each_key_has_a_doc_and_each_group_is_in_one_piece(schema):
    keys = describe_keys(schema)
    assert [each.key for each in keys if not each.doc] == []
    groups = [each.group for each in keys]
    assert len(dict.fromkeys(groups)) == 1 + sum(a != b for a, b in itertools.pairwise(groups))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Path | None, "path"),
        (str | Path, "path or address"),
        (int | float, "number"),
        (Literal["a", "b", "c"] | None, "a, b or c"),
        (tuple[int, int, int], "three whole numbers"),
        (list[str], "list of words"),
        (dict[str, int], "keys and values"),
    ],
)
def test_types_read_like_words(kind, words):
    assert kind_words(kind) == words
