"""The notes of a report name the limits of its conclusions."""

import json
from pathlib import Path
from typing import Any

import pytest

from upfield.evaluation.reports.notes import notes


@pytest.fixture
def tree(evaluated: Path) -> dict[str, Any]:
    """The contents of metrics.json."""
    return json.loads((evaluated / "metrics.json").read_text())


def test_a_note_warns_of_too_few_subjects(tree: dict[str, Any]) -> None:
    for subjects, words in ((1, "one subject has"), (3, "below 0.25"), (5, "below 0.0625")):
        tree["about"]["subjects"] = subjects
        assert any(words in note for note in notes(tree))
    tree["about"]["subjects"] = 6
    assert not any("one subject" in note or "paired test" in note for note in notes(tree))


def test_a_note_warns_of_subjects_seen_in_training(tree: dict[str, Any]) -> None:
    for split, words in (("train", "was trained on these subjects"), ("val", "was chosen on these subjects")):
        tree["about"]["split"] = split
        assert any(words in note for note in notes(tree))


def test_a_note_warns_of_a_model_trained_on_another_set(tree: dict[str, Any]) -> None:
    assert tree["about"]["models"]["model"]["trained_on_sha256"] == tree["about"]["data_sha256"]
    assert not any("trained on a shard set" in note for note in notes(tree))
    tree["about"]["models"]["model"]["trained_on_sha256"] = "0" * 64
    assert any("model: trained on a shard set with data hash 000000000000" in note for note in notes(tree))
