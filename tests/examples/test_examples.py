"""The examples run, and are as short as they claim to be."""

import runpy
import sys
from pathlib import Path

import pytest
from dali import needs_dali, run_dali

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_has_a_docstring_and_at_most_ten_further_lines(path: Path) -> None:
    _, docstring, code = path.read_text().split('"""')
    assert f"python examples/{path.name} SHARDS" in docstring
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


# webdataset does not close a tar; the garbage collector does.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_a_set(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["read_with_webdataset.py", str(tiny_shards)])
    runpy.run_path(str(EXAMPLES / "read_with_webdataset.py"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert all(line.endswith("(1, 24, 28) (1, 24, 28) float16") for line in printed)


@needs_dali
def test_dali_reads_a_set(tiny_shards: Path) -> None:
    printed = run_dali(EXAMPLES / "read_with_dali.py", tiny_shards).stdout
    assert printed.count("(1, 24, 28)") == 8
    assert printed.count("FLOAT16") == 2
