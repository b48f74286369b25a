"""Enhancement with the model that comes with the package: the arguments, the line about it, and the provenance."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from heads import write_scan

from upfield.common.command import parse
from upfield.common.files import hash_file
from upfield.export import serve
from upfield.export.configuration import STARTER
from upfield.export.enhance import COMMAND, main
from upfield.export.pretrained import packaged_model
from upfield.export.pretrained.packaged_model import PackagedModel

SCAN = Path("scan.nii")


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        (["scan.nii"], STARTER),
        (["my.onnx", "scan.nii"], Path("my.onnx")),
        (["MY.ONNX", "scan.nii"], Path("MY.ONNX")),
        (["scan.nii", "--model", "my.onnx"], Path("my.onnx")),
        (["scan.nii", "--model", "starter-t1"], STARTER),
        (["--config", "job.yaml"], Path("yours.onnx")),
        (["--config", "job.yaml", "my.onnx"], Path("my.onnx")),
        (["--config", "job.yaml", "scan.nii"], Path("yours.onnx")),
    ],
)
def test_a_first_place_that_ends_in_onnx_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("{model: yours.onnx, scans: [scan.nii], out: elsewhere}")
    config = parse(COMMAND, [*arguments, "--out", "out"])
    assert (config.model, config.scans) == (model, [SCAN])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx", "b.onnx", "scan.nii"], "b.onnx is a model, and so is a.onnx. Name one model, before the scans or"),
        (["a.onnx", "scan.nii", "--model", "b.onnx"], "a.onnx is a model, and so is b.onnx"),
        (["scan.nii", "a.onnx"], "a.onnx is a model. Name one model, before the scans or with --model."),
        (["a.onnx"], "SCANS is missing"),
        (["a.onnx", "scan.nii"], "a.onnx: there is no such file"),
        (["starter-t1", "scan.nii"], "starter-t1: there is no such file or folder. Write --model starter-t1 to use"),
        (["scan.nii", "--model", "startert1"], "startert1: no model with this name comes with the package (did you"),
    ],
)
def test_mixed_up_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scan(SCAN)
    code, _, err = run_cli(main, *arguments, "--out", "out")
    assert code == 2
    assert message in err
    assert not Path("out").exists()


@pytest.fixture
def starter(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """The model that is used without a choice: its card, with a file that restores small slices."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for path in packaged_model.FOLDER.glob(f"{STARTER}.md"):
        shutil.copy(path, folder)
    shutil.copy(tiny_model, folder / f"{STARTER}.onnx")
    monkeypatch.setattr(packaged_model, "FOLDER", folder)
    return packaged_model.model_named(str(STARTER))


def test_the_model_is_introduced_once_and_recorded(starter: PackagedModel, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz")
    code, _, err = run_cli(main, scan, "--out", tmp_path / "out.nii.gz", "--device", "cpu")
    assert code == 0, err
    assert err.count(starter.introduction) == 1
    tree = json.loads((tmp_path / "out.json").read_text())
    found = (tree["model"], tree["model_version"], tree["model_caution"], tree["model_sha256"])
    assert found == ("starter-t1.onnx", starter.version, starter.caution, hash_file(starter.path))


def test_a_file_of_the_user_is_not_introduced(tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    code, _, err = run_cli(main, tiny_model, scan, "--out", tmp_path / "out.nii.gz")
    assert (code, "version" in err) == (0, False)
    assert json.loads((tmp_path / "out.json").read_text())["model_version"] is None


def test_serve_takes_the_name_of_a_model(run_cli: Callable) -> None:
    code, _, err = run_cli(serve.main, "stater-t1", "--port", 0)
    assert code == 2
    assert "stater-t1: no model with this name comes with the package (did you mean starter-t1?)" in err
    assert parse(serve.COMMAND, []).model == STARTER
