import json
from dataclasses import asdict
from pathlib import Path

import pytest

from upfield.sharding.cohorts.problems import Problem, report, write_report


def test_the_report_is_a_table_with_a_row_for_each_problem(tmp_path):
    problems = [
        Problem("a", "sub-01", "high", "side", "/data/" + "long/" * 30 + "sub-01.nii", "expected one thing " * 8),
        Problem("long_name", "2", "low", "same", "a.nii", "expected another; fix it"),
    ]
    lines = report(problems, width=120).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["cohort", "subject", "field", "check", "message", "file"]
    assert lines[2].startswith("a          sub-01   high   side   expected one thing")
    assert lines[2].endswith("sub-01.nii")
    assert " /data/" in lines[2]
    (row,) = [line for line in lines if line.startswith("long_name")]
    assert row.split()[-1] == "a.nii"
    assert " ".join(lines).split().count("thing") == 8
    assert lines[-1] == "2 problems of 2 subjects"


def test_a_doubt_that_many_subjects_share_takes_one_row():
    shared = [Problem("a", f"{n:03d}", "low", "place", f"{n}.nii", "it lies elsewhere") for n in range(400)]
    other = Problem("b", "1", "low", "place", "b.nii", "it lies elsewhere")
    lines = report([*shared, other], width=120, noun="doubt").splitlines()
    assert lines[2].startswith("a       000 and 399 others")
    assert lines[3].startswith("b       1 ")
    assert lines[-1] == "401 doubts of 401 subjects"
    assert len(report(shared[:5], width=120).splitlines()) == 2 + 5 + 1
    faults = [Problem("a", f"{n}", "low", "side", f"{n}.nii", "no side") for n in range(9)]
    assert len(report(faults, width=120).splitlines()) == 2 + 9 + 1


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_report_fits_the_terminal_and_shows_20_rows_and_where_all_are(width):
    problems = [
        Problem(
            "a_long_name", f"sub-{n:02d}_ses-01", "high", "side", f"/data/{'long/' * 30}{n}.nii", "expected this " * 9
        )
        for n in range(47)
    ]
    text = report(problems, width=width, path=Path("set.problems.json"))
    assert max(map(len, text.splitlines())) <= width
    assert text.count("high") == 20
    assert text.splitlines()[-2:] == [
        "47 problems of 47 subjects",
        "The first 20 rows are shown; all are in set.problems.json.",
    ]


def test_one_problem_is_counted_in_the_singular():
    assert report([Problem("a", "1", "low", "side", "a.nii", "no side")]).splitlines() == [
        "a 1, low field (side): no side",
        "  a.nii",
        "1 problem of 1 subject",
    ]


def test_the_written_report_has_every_problem_in_full(tmp_path):
    problem = Problem("a", "sub-01", "high", "side", "/data/sub-01.nii", "expected one thing")
    write_report(tmp_path / "preflight.json", [problem], [problem, problem], subjects_checked=7)
    assert json.loads((tmp_path / "preflight.json").read_text()) == {
        "subjects_checked": 7,
        "subjects_with_problems": 1,
        "problems": [
            {
                "cohort": "a",
                "subject": "sub-01",
                "field": "high",
                "check": "side",
                "file": "/data/sub-01.nii",
                "message": "expected one thing",
            }
        ],
        "doubts": [{key: value for key, value in asdict(problem).items() if key != "details"}] * 2,
    }
