from itertools import combinations

import pytest

from upfield.sharding.shardset.namesakes import (
    Member,
    find_namesakes,
    find_shared_people,
    namesakes_message,
    person_of,
)


@pytest.mark.parametrize(
    "ids",
    [
        ("sub-01_ses-1", "sub-01_ses-2", "01_ses-3", "sub-01", "01", "sub01", "Sub-001", "1", "sub_01", "subject 1"),
        (
            "01_run-1",
            "01_acq-mprage_T1w",
            "01-T1",
            "01_T2w",
            "01_FLAIR",
            "01_session02",
            "01_visit2",
            "01_V1",
            "01_ses-a",
        ),
        ("OAS1_0061_MR1", "OAS1_0061_MR2", "oas1_61"),
        ("MS017", "MS_017", "ms-017_baseline"),
    ],
)
def test_ids_of_one_person_are_recognised(ids):
    assert len({person_of(name) for name in ids}) == 1


@pytest.mark.parametrize(
    "ids",
    [
        ("IXI002", "IXI020", "IXI012", "IXI002-Guys-0828", "IXI002-HH-0828", "IXI200"),
        ("1-23", "12-3", "123", "1 2 3", "0", "", "_", "sub", "ses-1", "sub-10", "sub-100"),
        ("control_scan01", "control_scan02", "control_T1", "batch_run1_03", "batch_run1_04", "suburb", "urb"),
        ("s1", "s2", "a_running1", "anna", "annaT1"),
    ],
)
def test_ids_of_different_people_are_not_taken_for_one(ids):
    for first, second in combinations(ids, 2):
        assert person_of(first) != person_of(second), (first, second)


def test_only_people_in_different_splits_are_reported():
    members = [Member("a", "01", "train"), Member("b", "01", "test"), Member("a", "02", "val"), Member("b", "2", "val")]
    assert find_namesakes(members) == [(Member("a", "01", "train"), Member("b", "01", "test"))]


def test_within_a_cohort_sessions_are_certain_and_spellings_are_not():
    sessions = [Member("a", "01_ses-1", "train"), Member("a", "sub-01_ses-2", "val")]
    assert find_shared_people([*sessions, Member("a", "1", "test"), Member("b", "01_ses-3", "test")]) == [
        tuple(sessions)
    ]


def test_many_namesakes_take_one_line():
    names = [f"{number:03d}" for number in range(400)]
    members = [Member("a", name, "train") for name in names] + [Member("b", name, "val") for name in names]
    message = namesakes_message(find_namesakes(members))
    assert message.startswith(
        "400 people may be in more than one split, because equal or similar ids are in different splits (000, 001"
    )
    assert len(message) < 300
