"""The printed table describes the data and compares the methods."""

import json
from pathlib import Path

from upfield.evaluation.reports.metrics_text import metrics_text


def test_real_and_synthetic_volumes_are_counted_separately(evaluated: Path) -> None:
    tree = json.loads((evaluated / "metrics.json").read_text())
    assert sum(tree["about"]["volumes"].values()) == 9
    real = tree["about"]["volumes"]["real"]
    assert metrics_text(tree).startswith(f"180 slices of {real} real and {9 - real} synthetic volumes, 6 subjects")


def test_the_table_of_several_subjects_fits_80_columns(evaluated: Path) -> None:
    lines = metrics_text(json.loads((evaluated / "metrics.json").read_text()), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:2] == ["cubic", "model"] for line in lines)
