"""The examples run, and are as short as they claim to be."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from dali import needs_dali, run_dali
from heads import write_scan
from sweeps import command, environment

from upfield.common.command import parse
from upfield.tune.space import read_space
from upfield.tune.sweep import COMMAND as TUNE

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_LINES = {
    "enhance_from_python.py": 15,
    "read_with_dali.py": 10,
    "read_with_webdataset.py": 10,
    "train_your_own_network.py": 50,
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_has_a_docstring_and_few_further_lines(path: Path) -> None:
    _, docstring, code = path.read_text().split('"""')
    assert f" examples/{path.name} S" in docstring
    assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES[path.name]


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name))


@pytest.mark.parametrize("name", sorted(set(MOST_LINES) - {"read_with_dali.py"}))
def test_an_example_without_arguments_explains_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=f"examples/{name} S"):
        run_example(name, monkeypatch)


# webdataset does not close a tar; the garbage collector does.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_a_set(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("read_with_webdataset.py", monkeypatch, tiny_shards)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert all(line.endswith("(1, 24, 28) (1, 24, 28) float16") for line in printed)


@needs_dali
def test_dali_reads_a_set(tiny_shards: Path) -> None:
    printed = run_dali(EXAMPLES / "read_with_dali.py", tiny_shards).stdout
    assert printed.count("(1, 24, 28)") == 8
    assert printed.count("FLOAT16") == 2


# The scan shows half a head.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scan_is_enhanced_from_python(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", "LAS")
    run_example("enhance_from_python.py", monkeypatch, scan, tmp_path / "enhanced.nii.gz", tiny_model)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("enhanced.nii.gz: (38, 45, 50) voxels of 1 mm, mean 0.")
    assert printed[1] == "restored in memory, the values are equal: True"


def validation(printed: str) -> str:
    (line,) = (line for line in printed.splitlines() if line.startswith("validation, "))
    return line


def test_another_network_is_trained(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run_example("train_your_own_network.py", monkeypatch, tiny_shards, tmp_path / "network", 10)
    printed = capsys.readouterr().out
    assert "step 10: L1 0." in printed
    assert validation(printed).startswith("validation, 20 slices: PSNR ")
    assert (tmp_path / "network/model.safetensors").is_file()


@pytest.mark.slow
def test_one_and_two_processes_train_the_same_network(tiny_shards: Path, tmp_path: Path) -> None:
    variables = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    lines = []
    for processes in (1, 2):
        launch = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node", processes]
        script = [EXAMPLES / "train_your_own_network.py", tiny_shards, tmp_path / str(processes), 20]
        done = subprocess.run(
            list(map(str, [*launch, *script])),
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines.append(validation(done.stdout))
    assert lines[0] == lines[1]


def test_the_sweep_fits_its_command() -> None:
    arguments = ["--config", str(EXAMPLES / "sweep.yaml"), "--train.data.shards", "set", "--out", "sweep"]
    config = parse(TUNE, arguments)
    assert read_space(config).keys() == {"optim.lr", "data.batch_size"}


@pytest.mark.slow
def test_the_sweep_runs(tiny_shards: Path, short_folder: Path) -> None:
    train = ["--train.data.shards", str(tiny_shards), "--train.model.preset", "tiny", "--train.run.epochs", "1"]
    words = [*command(EXAMPLES / "sweep.yaml", short_folder / "sweep"), "--trials", "2", *train]
    words += ["--asha.grace_epochs", "0.5", "--resources.gpus_per_worker", "0"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert (short_folder / "sweep/report.html").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_cells_of_the_notebook_run(
    tiny_shards: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    for name, target in {"shards": tiny_shards, "model.onnx": tiny_model}.items():
        (tmp_path / name).symlink_to(target)
    write_scan(tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "enhance_and_measure.ipynb").read_text())
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in codes)
    names: dict[str, object] = {}
    for cell in codes:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    with contextlib.suppress(ImportError):
        from matplotlib import pyplot

        assert len(pyplot.get_fignums()) == 2
        pyplot.close("all")
    assert "psnr_slice   cubic " in capsys.readouterr().out
