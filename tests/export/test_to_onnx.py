"""A model file computes what PyTorch computes at any size, and its metadata describes it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from upfield.common.files import hash_file
from upfield.export.modelfile.card import read_card
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.to_onnx import main
from upfield.model.weights import load_model


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (3, 1, 24, 28), (2, 1, 37, 61)])
def test_the_graph_takes_any_batch_and_size(tiny_run: Path, tiny_model: Path, shape: tuple[int, ...]) -> None:
    rows, columns = np.meshgrid(np.linspace(0, 1, shape[2]), np.linspace(0, 3, shape[3]), indexing="ij")
    low = np.broadcast_to(rows * np.cos(columns) ** 2, shape).astype(np.float32)
    with torch.inference_mode():
        expected = load_model(tiny_run / "best" / "model.safetensors")(torch.from_numpy(low.copy())).numpy()
    np.testing.assert_allclose(OnnxRestorer(tiny_model, "cpu").run(low), expected, atol=1e-5)


def test_the_metadata_describes_the_model(tiny_model: Path, tiny_shards: Path) -> None:
    card = OnnxRestorer(tiny_model, "cpu").card.tree
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    assert card["data_sha256"] == manifest["data_sha256"]
    assert card["normalisation"] == manifest["normalisation"]
    assert card["context"] == 0
    assert card["config"]["model"]["preset"] == "tiny"
    assert card["metrics"]["validation"]["slices"] == 20
    assert card["parity"]["max_abs_difference"] < 1e-4
    assert card["parity"]["share_beyond"] == 0
    assert card["parity"]["provider"] == "CPUExecutionProvider"
    assert len(card["parity"]["sizes"]) == 3


def test_the_file_names_no_folder_of_the_machine_that_wrote_it(tiny_model: Path, tiny_shards: Path) -> None:
    content = onnx.load_model(tiny_model).SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert str(tiny_shards).encode() not in content


def test_restored_slices_are_within_range(tiny_model: Path) -> None:
    restored = OnnxRestorer(tiny_model, "cpu").restore(np.random.default_rng(0).random((2, 1, 16, 16), np.float32))
    assert restored.min() >= 0
    assert restored.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "model.onnx"], "there is no such folder"),
        (["RUN/best", "--out", "model.onnx"], "is a folder inside a run. Name"),
        (["RUN", "--out", "model.pt"], "the file name must end in .onnx"),
        (["RUN", "--out", "model.onnx", "--precision", "int8"], "expected fp32 or fp16"),
        (["RUN", "--out", "model.onnx", "--evaluation", "nowhere.json"], "nowhere.json: there is no such file"),
        (["RUN", "--out", "model.onnx", "--evaluation", "."], "is a folder. Name the metrics.json in it"),
        (["RUN", "--out", "model.onnx", "--shards", "nowhere"], "there is no shard set here"),
        (["RUN"], "--out is missing"),
    ],
)
def test_bad_input_is_refused(
    tiny_run: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": tiny_run, "RUN/best": tiny_run / "best"}
    code, _, err = run_cli(main, *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


EXPORT_BOTH = """
import sys
from upfield.export.to_onnx import main
run, out, both = *sys.argv[1:], ("fp32", "fp16")
sys.exit(any(main([run, "--out", f"{out}/{name}.onnx", "--precision", name]) for name in both))
"""


def test_exporting_twice_in_two_processes_gives_the_same_bytes(
    tiny_run: Path, tiny_model: Path, tmp_path: Path, run_cli: Callable
) -> None:
    command = [sys.executable, "-c", EXPORT_BOTH, str(tiny_run), str(tmp_path)]
    # The seed of this process is random, or another one.
    environment = os.environ | {"PYTHONHASHSEED": "1", "USER": "another"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert hash_file(tmp_path / "fp32.onnx") == hash_file(tiny_model)
    code, said, _ = run_cli(main, tiny_run, "--out", tmp_path / "again.onnx", "--precision", "fp16")
    assert code == 0
    assert hash_file(tmp_path / "fp16.onnx") == hash_file(tmp_path / "again.onnx")
    assert "dB lost" in said
    card = read_card(tmp_path / "fp16.onnx").tree
    assert card["precision"] == "fp16"
    assert card["parity"]["psnr_lost_db"] <= 0.05


def test_the_weights_are_those_of_the_best_model(tiny_model: Path, tiny_run: Path) -> None:
    card = read_card(tiny_model).tree
    assert card["weights_sha256"] == hash_file(tiny_run / "best" / "model.safetensors")
    assert set(card["versions"]) == {"upfield", "torch", "onnx"}


def test_an_older_model_file_is_replaced(tiny_run: Path, tiny_model: Path, tmp_path: Path, run_cli: Callable) -> None:
    out = tmp_path / "model.onnx"
    shutil.copy(tiny_model, out)
    code, output, _ = run_cli(main, tiny_run, "--out", out, "--precision", "fp16")
    assert code == 0
    assert "fp16" in output
    assert "real slices and a test image at 3 sizes" in output
    assert read_card(out).tree["precision"] == "fp16"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", [b"", b"a letter", None])
def test_other_files_are_not_replaced(tiny_run: Path, tmp_path: Path, run_cli: Callable, content: bytes | None) -> None:
    out = tmp_path / "letter.onnx"
    if content is None:
        out.mkdir()
    else:
        out.write_bytes(content)
    code, _, err = run_cli(main, tiny_run, "--out", out)
    assert code == 2
    assert ("is a folder" if content is None else "exists and is not a model file of upfield") in err
    assert content is None or out.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    # The run does not exist, so the error names --out only if that is checked before the run is read.
    code, _, err = run_cli(main, tmp_path / "nowhere", "--out", tmp_path / "file" / "model.onnx")
    assert code == 2
    assert "cannot write there (Not a directory). Choose another --out." in err


def test_the_error_for_missing_shards_names_the_option(tiny_run: Path, tmp_path: Path, run_cli: Callable) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "best", run / "best")
    config = run / "best" / "config.yaml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join("  shards: /gone" if line.startswith("  shards:") else line for line in lines))
    code, _, err = run_cli(main, run, "--out", tmp_path / "model.onnx")
    assert code == 2
    assert "/gone: there is no shard set here" in err
    assert "if it has moved, name it with --shards" in err


def evaluation(tiny_run: Path, **changes) -> dict:
    record = json.loads((tiny_run / "best" / "metrics.json").read_text())
    model = {
        "step": record["step"],
        "sha256": hash_file(tiny_run / "best" / "model.safetensors"),
        "trained_on_sha256": record["data_sha256"],
    }
    about = {
        "restorer": f"run (step {record['step']}), PyTorch on cpu, best model",
        "models": {"model": model | changes},
        "split": "test",
        "data_sha256": record["data_sha256"],
        "slices": 20,
        "subjects": 1,
    }
    figures = {"psnr_slice": {"mean": 20.0}}
    return {"cubic": figures, "model": figures, "about": about, "groups": {}}


def test_an_evaluation_is_recorded_under_its_split(tiny_run: Path, tmp_path: Path, run_cli: Callable) -> None:
    measured = tmp_path / "metrics.json"
    measured.write_text(json.dumps(evaluation(tiny_run)))
    code, _, err = run_cli(main, tiny_run, "--out", tmp_path / "model.onnx", "--evaluation", measured)
    assert code == 0, err
    metrics = read_card(tmp_path / "model.onnx").tree["metrics"]
    assert set(metrics) == {"validation", "test"}
    assert metrics["test"]["model"] == {"psnr_slice": {"mean": 20.0}}
    assert (metrics["test"]["checked"], metrics["test"]["slices"]) == ("weights", 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 77}, "is an evaluation of step 77 ("),
        ({"sha256": "0" * 64}, "is an evaluation of other weights of the same step"),
    ],
)
def test_an_evaluation_of_another_model_is_refused(
    tiny_run: Path, tmp_path: Path, run_cli: Callable, changes: dict, message: str
) -> None:
    measured = tmp_path / "metrics.json"
    measured.write_text(json.dumps(evaluation(tiny_run, **changes)))
    code, _, err = run_cli(main, tiny_run, "--out", tmp_path / "model.onnx", "--evaluation", measured)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == [measured]


@pytest.mark.parametrize("content", ["[]", "{}", '{"about": {}, "cubic": {}, "model": {}}', "no JSON"])
def test_files_that_are_not_evaluations_are_refused(
    tiny_run: Path, tmp_path: Path, run_cli: Callable, content: str
) -> None:
    measured = tmp_path / "metrics.json"
    measured.write_text(content)
    code, _, err = run_cli(main, tiny_run, "--out", tmp_path / "model.onnx", "--evaluation", measured)
    assert code == 2
    assert str(measured) in err
