"""The acceptance run reports each check that fails, hangs or crashes, and its modules need no absent library."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABSENT = ("nibabel", "nilearn", "jsonargparse", "isal", "ray", "webdataset")
CHECKS = {
    "passes": "report.figure('rate', 1.5); report.expect('one is one', True)",
    "fails": "report.figure('rate', 2.5); report.expect('one is two', False, 'found 1')",
    "raises": "report.expect('one is one', True); raise RuntimeError('no such operator')",
    "hangs": "report.figure('rate', 3.5); print('waiting', flush=True); time.sleep(600)",
    "leaves": "os._exit(3)",
    "is_killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "segfaults": "ctypes.string_at(0)",
    "has_no_gpu": "report.needs_gpu('a card')",
    "passes_again": "report.expect('one is one', True)",
}
PROGRAM = """\
import sys
sys.path.insert(0, {benchmarks!r})
import gpu_acceptance
from acceptance.plan import Check
checks = [Check(number, name, name, 1.0) for number, name in enumerate({names!r}, 1)]
Check.limit_s = lambda self, device: 3.0 if self.title == "hangs" else 60.0
sys.exit(gpu_acceptance.main(sys.argv[1:], checks))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the modules of the checks, and with shards that none of them reads."""
    folder = tmp_path_factory.mktemp("acceptance")
    for name, body in CHECKS.items():
        imports = "import ctypes, os, signal, time"
        (folder / f"{name}.py").write_text(f"{imports}\ndef run(report):\n    {body}\n")
    (folder / "shards").mkdir()
    (folder / "shards/manifest.json").touch()
    return folder


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the program on these checks."""
    program = PROGRAM.format(benchmarks=str(BENCHMARKS), names=list(CHECKS))
    command = [sys.executable, "-c", program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=folder)


@pytest.fixture(scope="module")
def outcome(folder: Path) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """Run checks of which most go wrong; return the folder of the results and what the program printed."""
    return folder / "out", run(folder, "--device", "cpu", "--out", "out", "--shards", "shards")


def test_every_check_runs_whatever_happens_to_the_others(outcome: tuple[Path, "subprocess.CompletedProcess[str]"]):
    out, done = outcome
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(result["title"], result["status"]) for result in results] == [
        ("passes", "passed"),
        ("fails", "failed"),
        ("raises", "failed"),
        ("hangs", "timed out"),
        ("leaves", "crashed"),
        ("is_killed", "crashed"),
        ("segfaults", "crashed"),
        ("has_no_gpu", "needs a GPU"),
        ("passes_again", "passed"),
    ], done.stderr
    assert done.returncode == 1


def test_a_check_that_goes_wrong_keeps_its_figures_and_says_why(
    outcome: tuple[Path, "subprocess.CompletedProcess[str]"],
):
    out, done = outcome
    results = {line["title"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert results["hangs"]["figures"] == {"rate": 3.5}
    assert results["fails"]["failures"] == ["one is two (found 1)"]
    assert "no such operator" in results["raises"]["failures"][0]
    assert "exit code 3" in results["leaves"]["failures"][0]
    assert "SIGKILL" in results["is_killed"]["failures"][0]
    assert "SIGSEGV" in results["segfaults"]["failures"][0]
    log = (out / "log.txt").read_text()
    assert "waiting" in log
    assert "time.sleep" in log or "in run" in log  # where the check hung
    for text in (done.stdout, (out / "table.txt").read_text()):
        assert "timed out" in text
        assert "one is two" in text


def test_the_modules_of_all_checks_need_no_absent_library(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refusing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {ABSENT}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Refusing())\n"
    )
    program = (
        "import sys, importlib\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import gpu_acceptance\n"
        "for check in gpu_acceptance.CHECKS:\n"
        "    importlib.import_module(check.module).run\n"
        "import acceptance.ranks, acceptance.modelfiles, upfield.export.modelfile.parity\n"
        f"assert not {set(ABSENT)} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{BENCHMARKS.parent / 'typings'}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_a_run_without_time_reports_what_was_not_run(tmp_path: Path):
    (tmp_path / "manifest.json").touch()
    arguments = ["--device", "cpu", "--total_s", "0.1", "--only", "1,12", "--out", str(tmp_path / "out")]
    command = [sys.executable, str(BENCHMARKS / "gpu_acceptance.py"), *arguments, "--shards", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [(line["check"], line["status"]) for line in lines] == [(1, "not run"), (12, "not run")]
    assert done.returncode == 1


def test_a_repeated_check_keeps_the_results_of_the_others(
    folder: Path, outcome: tuple[Path, "subprocess.CompletedProcess[str]"], tmp_path: Path
):
    out = shutil.copytree(outcome[0], tmp_path / "out")
    done = run(folder, "--device", "cpu", "--shards", "shards", "--out", str(out), "--only", "1")
    numbers = [json.loads(line)["check"] for line in (out / "results.jsonl").read_text().splitlines()]
    assert numbers == [*range(2, len(CHECKS) + 1), 1], done.stderr
    assert "is_killed" in (out / "table.txt").read_text()
    assert "waiting" in (out / "log.txt").read_text()
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--only", "77"],
            "--only: expected numbers from 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, separated by commas, found '77'",
        ),
        (["--device", "cuda"], "--device: PyTorch sees no GPU here"),
        (["--device", "cpu", "--shards", "mine"], "mine: expected shards or an empty folder"),
        (["--device", "cpu", "--shards", "shards", "--out", "shards/manifest.json"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    program = importlib.import_module("gpu_acceptance")
    for name in ("mine/thesis.txt", "shards/manifest.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("precious")
    with pytest.raises(SystemExit) as refused:
        program.main(arguments)
    # Python prints this text and exits with 1.
    assert said in str(refused.value.code)
    assert "\n" not in str(refused.value.code)
    assert (tmp_path / "mine/thesis.txt").exists()
