"""The demonstration prints one line per stage, and keeps everything else in its log file."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from upfield.cli.stage_output import STAGES, StageOutput, introduction, stages_for
from upfield.common.errors import RunError


def noisy_stage() -> str:
    """Print from this process and from another one."""
    print("from Python")
    print("to stderr", file=sys.stderr)
    subprocess.run("echo from a process; echo its error >&2", shell=True, check=True)
    return "a folder"


def test_a_stage_is_one_line_and_its_output_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "demo.log"
    with StageOutput(STAGES, log) as output:
        for stage in STAGES[:2]:
            output.run(stage, noisy_stage)
        print("after the stages")
    out, err = capfd.readouterr()
    assert out == "after the stages\n"
    assert [line.split() for line in err.splitlines()] == [[s.name, "0", "s", "a", "folder"] for s in STAGES[:2]]
    noise = ["from Python", "to stderr", "from a process", "its error"]
    assert log.read_text().splitlines() == ["== cohort", *noise, "== shards", *noise]
    assert list(output.times_s) == ["cohort", "shards"]


def test_a_failed_stage_shows_what_it_printed_last(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> str:
        noisy_stage()
        raise RunError("no")

    with StageOutput(STAGES, tmp_path / "demo.log") as output:
        output.run(STAGES[0], noisy_stage)
        with pytest.raises(RunError, match="no"):
            output.run(STAGES[1], fail)
    err = capfd.readouterr().err.splitlines()
    assert err[1] == f"shards failed. {tmp_path / 'demo.log'} contains its whole output, which ends with:"
    assert err[2:] == ["== shards", "from Python", "to stderr", "from a process", "its error"]


def test_the_bar_shows_the_share_and_never_enters_the_next_stage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upfield.cli.stage_output.UPDATE_INTERVAL_S", 0.01)
    shown: list[int] = []
    monkeypatch.setattr("upfield.common.progress.ProgressBar.advance", lambda _, count: shown.append(count))
    shares = [0.0, 0.5, 9.0, 9.0]
    asked = threading.Event()

    def share_done() -> float:
        if len(shares) == 1:
            asked.set()
        return shares.pop(0) if len(shares) > 1 else shares[0]

    with StageOutput(STAGES, tmp_path / "demo.log") as output:
        output.run(STAGES[2], lambda: str(asked.wait(10)), share_done)
    part = 100 * STAGES[2].expected_s / sum(stage.expected_s for stage in STAGES)
    assert shown == [round(part / 2), round(0.97 * part) - round(part / 2), round(part) - round(0.97 * part)]
    assert "True" in capfd.readouterr().err


def test_the_introduction_names_every_stage_within_80_columns() -> None:
    text = introduction(Path("demo"), Path("demo/demo.log"))
    assert all(f"{number}. {stage.name} " in text for number, stage in enumerate(STAGES, start=1))
    assert "takes about 3 minutes on two CPU cores" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_fewer_steps_make_the_training_a_smaller_share_of_the_bar() -> None:
    assert {stage.name: stage.expected_s for stage in stages_for(36)}["training"] == pytest.approx(12)
    assert stages_for(None) == STAGES


def test_a_slow_machine_makes_the_next_stages_longer(tmp_path: Path) -> None:
    with StageOutput(STAGES, tmp_path / "demo.log") as output:
        assert output._slowdown == 1
        output.run(STAGES[0], lambda: "")
        output.times_s[STAGES[0].name] = 3 * STAGES[0].expected_s
        assert output._slowdown == 3
