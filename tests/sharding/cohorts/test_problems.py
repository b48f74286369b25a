import json
from dataclasses import asdict

from upfield.sharding.cohorts.problems import Problem, report, write_report


def test_the_report_is_a_table_with_a_row_for_each_problem(tmp_path):
    problems = [
        Problem("a", "sub-01", "high", "side", "/data/" + "long/" * 30 + "sub-01.nii", "expected one thing " * 8),
        Problem("long_name", "2", "low", "same", "a.nii", "expected another; mend it"),
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
