import os
import subprocess
import sys
from typing import Any

import pytest

from upfield.common.progress import ProgressBar, describe_duration, track


def imitate_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stderr a terminal. A fixture cannot do this, because pytest replaces stderr after the fixture has run."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def test_without_a_terminal_a_short_loop_prints_only_its_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == "letters: 3/3\n"


def test_on_a_terminal_a_loop_has_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    imitate_terminal(monkeypatch)
    assert list(track("abc", "upload to [here]", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert not out
    assert "━" in err
    assert "upload to [here]" in err
    assert "3/3" in err


def test_a_bar_starts_at_the_items_already_done_and_shows_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate_terminal(monkeypatch)
    with ProgressBar("steps", 9, 4, has_lines=False) as bar:
        bar.advance()
        bar.show_figures("loss 0.1234")
    err = capsys.readouterr().err
    assert "5/9" in err
    assert "loss 0.1234" in err


@pytest.mark.parametrize("options", [{"visible": False}, {"has_lines": False}])
def test_work_that_logs_its_own_lines_prints_no_progress_lines(
    capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    with ProgressBar("steps", 1, **options) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_without_a_terminal_progress_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upfield.common.progress.LINE_INTERVAL_S", 0)
    with ProgressBar("scans", 2) as bar:
        bar.begin_parts("a.nii: slice", 7)
        bar.advance_parts(4)
        bar.advance_parts(3)
        bar.advance()
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "a.nii: slice 4/7; scans: 0/2",
        "a.nii: slice 7/7; scans: 0/2",
        "scans: 1/2",
        "scans: 2/2",
    ]


def test_on_a_terminal_items_and_their_parts_have_a_bar_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    imitate_terminal(monkeypatch)
    with ProgressBar("scans", 2) as bar:
        bar.begin_parts("[a].nii: slice", 7)
        bar.advance_parts(7)
        bar.advance()
    out, err = capsys.readouterr()
    assert not out
    assert "[a].nii" in err
    assert "7/7" in err
    assert "scans" in err
    assert "1/2" in err


PRINTING = """
from upfield.common.progress import open_streams, say
open_streams()
for number in range(1000):
    print("K\\udcf6nig \\u4e2d", flush=number % 2)
say("said K\\udcf6nig")
"""


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii:strict", "utf-8:surrogateescape"])
def test_every_character_is_printed_in_every_encoding(encoding: str) -> None:
    command = [sys.executable, "-c", PRINTING]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=True)
    assert done.stderr.splitlines() == [rb"said K\udcf6nig"]
    lines = done.stdout.decode(encoding.partition(":")[0]).splitlines()
    assert len(lines) == 1000
    assert lines[-1] == ("K\\udcf6nig 中" if encoding.startswith("utf-8") else r"K\udcf6nig \u4e2d")


@pytest.mark.parametrize("closing", ["", ">&-", "> /dev/full"])
def test_the_work_goes_on_when_nobody_reads_stdout(closing: str) -> None:
    end, begin = os.pipe()
    os.close(end)
    command = ["bash", "-c", f'"$@" {closing}', "bash", sys.executable, "-c", PRINTING]
    done = subprocess.run(command, stdout=begin, stderr=subprocess.PIPE, check=False)
    os.close(begin)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [rb"said K\udcf6nig"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3570, "1 h"),
        (12_000, "3 h 20 min"),
        (86_400, "1 day"),
        (189_900, "2 days 5 h"),
    ],
)
def test_a_duration_has_its_largest_units(seconds: float, words: str) -> None:
    assert describe_duration(seconds) == words


def test_lines_and_bars_show_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 60))
    monkeypatch.setattr("upfield.common.progress.time.monotonic", lambda: next(now))
    with ProgressBar("slices", 9) as bar:
        bar.advance(3)
    assert capsys.readouterr().err.startswith("slices: 3/9, 2 min left")


def test_parts_have_lines_even_if_the_items_have_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upfield.common.progress.LINE_INTERVAL_S", 0)
    with ProgressBar("steps", 2, has_lines=False) as bar:
        bar.begin_parts("validation slices", 4)
        bar.advance_parts(4)
        bar.end_parts()
        bar.advance()
    assert capsys.readouterr().err == "validation slices 4/4\n"
