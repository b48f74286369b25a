"""Input that cannot be evaluated is refused with a message before anything is written."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from upfield.evaluation.evaluate import main
from upfield.evaluation.input_checks import report_folders
from upfield.evaluation.restorers import RunRestorer


@pytest.mark.parametrize("place", ["SHARDS/report", "RUN", "RUN/best", "RUN/checkpoints/x", "FILE", "FILE/x"])
def test_an_unusable_report_folder_is_refused_before_anything_is_measured(
    tiny_shards: Path, tiny_run: Path, tmp_path: Path, run_cli, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    out = (
        place.replace("SHARDS", str(tiny_shards)).replace("RUN", str(tiny_run)).replace("FILE", str(tmp_path / "file"))
    )
    code, _, err = run_cli(main, tiny_run, "--shards", tiny_shards, "--out", out)
    assert code == 2
    assert "Choose another --out" in err
    assert len(err.splitlines()) == 1  # The progress of a measurement has lines of its own.


def test_without_matplotlib_nothing_is_measured(
    tiny_shards: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run_cli(main, tiny_run, "--shards", tiny_shards, "--out", tmp_path / "o")
    assert code == 2
    assert "pip install 'upfield[demo]'" in err
    assert len(err.splitlines()) == 1


def test_a_model_that_returns_nan_ends_the_evaluation(
    tiny_shards: Path, tiny_run: Path, tmp_path: Path, monkeypatch, run_cli
) -> None:
    def nothing(self: RunRestorer, low: np.ndarray) -> np.ndarray:
        return np.full_like(low, np.nan)

    monkeypatch.setattr(RunRestorer, "restore", nothing)
    code, _, err = run_cli(main, tiny_run, "--shards", tiny_shards, "--out", tmp_path / "o")
    assert code == 1
    assert "the model returned values that are not finite" in err
    assert "Traceback" not in err


def change(name: str) -> Callable[[dict[str, Any]], None]:
    """Return the function of this name, which makes a manifest invalid for the test."""

    def other_normalisation(tree: dict[str, Any]) -> None:
        tree["normalisation"] = "another"

    def empty(tree: dict[str, Any]) -> None:
        tree["splits"]["test"]["shards"] = []
        del tree["splits"]["test"]["index"]

    def without_split(tree: dict[str, Any]) -> None:
        del tree["splits"]["test"]

    def other_shape(tree: dict[str, Any]) -> None:
        tree["sample"]["high"]["shape"] = [1, 24, 30]

    def other_count(tree: dict[str, Any]) -> None:
        tree["config"]["geometry"]["high_shape"][0] = 21

    return locals()[name]


@pytest.mark.parametrize(
    ("spoilt", "arguments", "message"),
    [
        (
            None,
            ["nowhere"],
            "nowhere: there is no such run or .onnx file, and no packaged model of this name. Check the path",
        ),
        (None, ["starter"], r"and no packaged model of this name \(did you mean starter-t1\?\)"),
        (None, ["nowhere.onnx"], "nowhere.onnx: there is no such run or .onnx file"),
        (None, ["FILE"], "file: this is neither a run folder nor an .onnx file"),
        (None, ["FOLDER"], "folder.onnx.best: model.safetensors is missing from the best model"),
        (None, ["RUN", "--shards", "nowhere"], "there is no shard set here"),
        (None, ["RUN", "--split", "tset"], "tset"),
        (None, ["RUN", "--device", "cuda"], "device: cuda needs an NVIDIA GPU"),
        (None, ["RUN", "--against", "nowhere.onnx"], "nowhere.onnx: there is no such run or .onnx file"),
        (None, ["RUN", "RUN"], "a model is named twice"),
        (None, ["RUN", "--batch_size", "0"], "batch_size: expected at least 1, found 0"),
        (None, ["RUN", "--processes", "0"], "processes: expected at least 1, found 0"),
        (None, [], "MODELS is missing"),
        (
            "other_normalisation",
            ["RUN"],
            "expected a model trained with normalisation 'another'.*found 'clip to percentiles",
        ),
        ("empty", ["RUN"], "split test has no samples. Choose another --split"),
        ("without_split", ["RUN"], "there is no split test. Choose one of train, val"),
        ("other_shape", ["RUN"], r"expected high members of shape \(1, 24, 30\)"),
        ("other_count", ["RUN"], "expected 21 slices numbered from 0, found 20 numbered 0 to 19"),
    ],
)
def test_bad_input_is_refused(
    tiny_run: Path,
    tiny_shards: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    spoilt: str | None,
    arguments: list[str],
    message: str,
) -> None:
    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    shards = tiny_shards
    if spoilt:
        shards = tmp_path / "set"
        shutil.copytree(tiny_shards, shards)
        tree = json.loads((shards / "manifest.json").read_text())
        change(spoilt)(tree)
        (shards / "manifest.json").write_text(json.dumps(tree))
    (tmp_path / "file").write_text("no model")
    (tmp_path / "folder.onnx").mkdir()
    places = {"RUN": str(tiny_run), "FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder.onnx")}
    given = [places.get(argument, argument) for argument in arguments]
    given = given if "--shards" in given else [*given, "--shards", str(shards)]
    code, _, err = run_cli(main, *given, "--out", "o")
    assert code == 2, err
    assert re.search(message, err.splitlines()[-1]), err
    assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_a_set_with_missing_shards_is_refused(
    tiny_run: Path, tiny_shards: Path, tmp_path: Path, run_cli: Callable
) -> None:
    shards = tmp_path / "set"
    shutil.copytree(tiny_shards, shards)
    for file in (shards / "test").glob("*.tar"):
        file.unlink()
    code, _, err = run_cli(main, tiny_run, "--shards", shards, "--out", tmp_path / "o")
    assert code == 2
    assert "this shard is missing. Run upfield verify" in err
    assert not (tmp_path / "o").exists()


def test_a_shard_that_was_changed_is_refused(
    tiny_run: Path, tiny_shards: Path, tmp_path: Path, run_cli: Callable
) -> None:
    shards = tmp_path / "set"
    shutil.copytree(tiny_shards, shards)
    tar = next((shards / "test").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    code, _, err = run_cli(main, tiny_run, "--shards", shards, "--out", tmp_path / "o")
    assert code == 2
    assert re.search(r"\.tar: expected sha256 \w+ as in the manifest", err)
    assert not (tmp_path / "o").exists()


def test_models_of_the_same_name_get_different_folders() -> None:
    models = [Path("a/run"), Path("b/run"), Path("run.onnx")]
    assert report_folders(models, Path("o")) == [Path("o/run"), Path("o/run-2"), Path("o/run-3")]
    assert report_folders(models[:1], Path("o")) == [Path("o")]
