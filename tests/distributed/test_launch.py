"""A launched process starts with its number of threads: libraries read the variable only when they are loaded."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from upfield.distributed import launch

SCRIPT = """\
import os
from pathlib import Path
Path(__file__).with_name(os.environ["RANK"]).write_text(os.environ["OMP_NUM_THREADS"])
"""


@dataclass(frozen=True)
class Job:
    processes: int = 2


@pytest.mark.parametrize(
    ("own", "recorded", "threads"),
    [("", 0, "3"), ("", 5, "5"), ("7", 5, "7")],
    ids=["by the load", "of the resumed run", "of the user"],
)
def test_each_process_starts_with_its_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, recorded: int, threads: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("OMP_NUM_THREADS", own)
    monkeypatch.setattr(launch, "num_threads", lambda processes: 6 // processes)
    assert launch.relaunch(script, Job(), threads=recorded) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == [threads] * 2
