"""The page of the ranges of the physics recipe states the defaults of its configuration."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np

from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.physics.sequences import HIGH_SEQUENCES

PAGE = Path(__file__).parents[2] / "docs/reference/physics-ranges.md"
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
]


def numbers(*cells: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", " ".join(cells))]


def test_the_page_states_the_default_of_each_key():
    stated = {row[0].strip("`"): numbers(row[1]) for row in ROWS if row[0].startswith("`")}
    for row in (row for row in ROWS if row[0].startswith("64 mT ")):
        stated |= {key: numbers(cell) for key, cell in zip(re.findall(r"`(\w+)`", row[1]), row[2:], strict=False)}
    config = PhysicsConfig()
    assert stated == {each.name: np.ravel(getattr(config, each.name)).tolist() for each in fields(config)}


def test_the_page_states_the_sequences_at_3_t():
    stated = [numbers(*row[2:]) for row in ROWS if row[0].startswith("3 T ")]
    used = [
        [
            *each.tr_ms,
            *each.te_ms,
            *(each.ti_ms if max(each.ti_ms) else ()),
            *(each.flip_deg if min(each.flip_deg) < 90 else ()),
        ]
        for sequences in HIGH_SEQUENCES.values()
        for each in sequences
    ]
    assert stated == used
