"""Processes of one machine print a shared error once, and name the process if only one has an error."""

import os
import subprocess
import sys

import pytest

from upfield.distributed.launch import free_port

PROGRAM = """
import os, sys
from upfield.common.environment import job_errors
job_errors.WAIT_S = float(sys.argv[2])
message = sys.argv[1].split("|")[int(os.environ["LOCAL_RANK"])]
if message:
    job_errors.print_error("upfield train: error: ", message)
"""


@pytest.mark.parametrize(
    ("messages", "wait_s", "printed"),
    [
        (("a: wrong.", "a: wrong."), 60, ["a: wrong."]),
        (("", "a: wrong."), 0.5, ["process 1 of 2: a: wrong."]),
        (("b: wrong.", "a: wrong."), 60, ["process 0 of 2: b: wrong.", "process 1 of 2: a: wrong."]),
    ],
    ids=["of all", "of one", "different ones"],
)
def test_an_error_is_printed_once(messages: tuple[str, str], wait_s: float, printed: list[str]) -> None:
    shared = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "|".join(messages), str(wait_s)],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    lines = [line for process in ranks for line in process.communicate(timeout=60)[1].splitlines()]
    assert sorted(lines) == [f"upfield train: error: {text}" for text in printed]


def test_a_single_process_prints_its_error_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from upfield.common.environment.job_errors import print_error

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    print_error("upfield train: error: ", "a: wrong.")
    assert capsys.readouterr().err == "upfield train: error: a: wrong.\n"
