"""Every command and the Python lines of README.md run.

The quick tests run them in the order of the page, in one folder, with this in place of what the reader has:
- `cohorts.yaml` and its scans are the tiny cohort, and `scan.nii.gz` is a small scan of noise.
- Training takes 2 steps of the preset `tiny` in float32. With the defaults, it would take days on a CPU.
- The evaluation does not perturb its input, which would take four times as long.
- `make` prints what it would run. test_demo.py runs the demonstration (marker `slow`), and this suite is `make test`.

The slow tests run the rest:
- The sweep has one trial of 2 steps on the tiny set, and the service listens on a free port.
- pip installs and builds a copy of the repository without its dependencies, which are several gigabytes.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from sysconfig import get_path

import nibabel as nib
import numpy as np
import pages
import pytest
from serving import ask

from upfield.cli.main import VERBS, main
from upfield.distributed.launch import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INLINE = re.compile(r"`((?:upfield|make|pip) [^`]+)`")
# What is added to a command of the page, so that it takes seconds.
TINY = {
    "shard": ["--jobs", "1"],
    "train": ["--model.preset", "tiny", "--run.max_steps", "2", "--run.precision", "no", "--run.trackers", "[]"],
    "evaluate": ["--perturb", "false"],
}
ONE_SHORT_TRIAL = [
    *("--trials", "1", "--scheduler", "none", "--train.model.preset", "tiny", "--train.run.max_steps", "2"),
    *("--train.run.precision", "no", "--train.run.trackers", "[]", "--train.run.pictures", "0"),
]


def blocks(language: str) -> list[str]:
    return [text for found, text in pages.blocks(README) if found == language]


def commands() -> Iterator[str]:
    """Yield every command of the page: lines of shell blocks, lines after a prompt, and commands in the text."""
    for block in blocks("sh"):
        yield from block.splitlines()
    for block in blocks("console"):
        yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))
    yield from INLINE.findall(pages.prose(README))


COMMANDS = list(commands())


def of(program: str) -> list[str]:
    """Return the commands of the page that start a program, without environment folder and repetitions."""
    called = (command.removeprefix(".venv/bin/") for command in COMMANDS)
    return list(dict.fromkeys(command for command in called if command.startswith(program + " ")))


def verb_command(verb: str) -> list[str]:
    """Return the arguments of the page's command with a verb, which must be there once."""
    (command,) = (command for command in of("upfield") if command.split()[1] == verb)
    return shlex.split(command)[1:]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader who has upfield, and no data yet."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_command_of_the_page_is_left_out() -> None:
    setting_up = {"python3 -m venv .venv", "source .venv/bin/activate"}
    tried = {*of("upfield"), *of("make"), *of("pip")}
    assert {command.removeprefix(".venv/bin/") for command in COMMANDS} == setting_up | tried
    assert len(of("upfield")) == 9


@pytest.mark.filterwarnings("ignore::UserWarning")  # what is doubtful about noise
def test_the_road_runs_from_scans_to_an_enhanced_scan_and_so_do_the_python_lines(
    desk: Path, tiny_cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_cohort, desk, dirs_exist_ok=True)
    write_small_scan(desk / "scan.nii.gz")
    for verb in ("shard", "train", "evaluate", "export", "enhance"):
        assert main([*verb_command(verb), *TINY.get(verb, [])]) == 0, capsys.readouterr().err
    assert {"shards", "run", "evaluation", "model.onnx", "enhanced.nii.gz"} <= {path.name for path in desk.iterdir()}
    capsys.readouterr()
    (lines,) = blocks("python")
    exec(compile(lines, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 20  # the test split of the tiny cohort
    assert printed[0].endswith("float32")


def write_small_scan(path: Path) -> None:
    """Write noise with voxels like those of a 64 mT scan, which are few enough for the starter model."""
    voxels = np.random.default_rng(0).integers(0, 999, (12, 14, 6)).astype(np.int16)
    nib.Nifti1Image(voxels, np.diag([1.6, 1.6, 5, 1])).to_filename(path)


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    helps = [command for command in of("upfield") if command.endswith("--help")]
    assert helps == ["upfield --help", "upfield VERB --help"]
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert [verb for verb in VERBS if f" {verb} " not in listed] == []
    assert main(["export", "--help"]) == 0


@pytest.mark.parametrize("command", of("make"))
def test_a_target_of_make_exists(command: str) -> None:
    done = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pip_is_given_files_and_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in of("pip"):
        for names in re.findall(r"\[([\w,]+)\]", command):
            assert set(names.split(",")) <= set(extras), command
        if "-c " in command:
            assert (ROOT / command.split("-c ")[1].split()[0]).is_file(), command


def test_files_that_the_page_names_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_page_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_sweep_and_the_service_have_real_flags_and_files() -> None:
    from upfield.common.command import parse
    from upfield.export.serve import COMMAND as SERVE
    from upfield.tune.sweep import COMMAND as TUNE

    parse(TUNE, sweep_arguments())
    parse(SERVE, verb_command("serve")[1:])
    assert set(VERBS) >= {command.split()[1] for command in of("upfield")} - {"--help", "VERB"}


def sweep_arguments() -> list[str]:
    """Return the arguments of the page's sweep, with the configuration of this checkout."""
    return [str(ROOT / word) if word.endswith(".yaml") else word for word in verb_command("tune")[1:]]


@pytest.mark.slow
def test_the_sweep_runs(desk: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    (desk / "shards").symlink_to(tiny_shards)
    assert main(["tune", *sweep_arguments(), *ONE_SHORT_TRIAL]) == 0
    assert (desk / "sweep" / "best" / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_service_becomes_ready(desk: Path, tiny_model: Path) -> None:
    shutil.copy(tiny_model, desk / "model.onnx")
    program, port = Path(get_path("scripts")) / "upfield", free_port()
    command = [program, *verb_command("serve"), "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"})
    deadline = time.monotonic() + 180
    try:
        while not is_ready(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def is_ready(port: int) -> bool:
    try:
        return ask(port, "/ready").status == 200
    except ConnectionError:
        return False


@pytest.mark.slow
def test_pip_installs_a_clone_and_builds_the_wheel(tmp_path: Path) -> None:
    clone, tools = tmp_path / "clone", tmp_path / "tools"
    ignored = shutil.ignore_patterns(".venv", ".git", "demo", "build", "*.egg-info", "tests", "docs", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)
    venv.create(clone / ".venv", with_pip=True)
    # Without an index, pip cannot fetch setuptools.
    for folder in Path(get_path("purelib")).glob("setuptools*"):
        shutil.copytree(folder, tools / folder.name)
    for command in of("pip"):
        words = [clone / ".venv/bin/pip", *shlex.split(command)[1:], "--no-deps", "--no-build-isolation", "--no-index"]
        done = subprocess.run(
            words, cwd=clone, env={**os.environ, "PYTHONPATH": str(tools)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    (wheel,) = re.findall(r"`(upfield-[^`]+\.whl)`", README)
    assert (clone / wheel).is_file()
    assert (clone / ".venv/bin/upfield").is_file()
