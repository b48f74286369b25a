"""The models that come with the package: their files, and what a user means by a name or a path."""

import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from upfield.common.errors import InputError
from upfield.common.files import hash_file
from upfield.export.configuration import STARTER, EnhanceConfig, ServeConfig
from upfield.export.modelfile.card import read_card
from upfield.export.pretrained.model_text import FIGURES, card_text
from upfield.export.pretrained.packaged_model import (
    FOLDER,
    all_models,
    describe_model,
    find_model,
    model_at,
    model_named,
    run_or_model,
)

ROOT = Path(__file__).parents[3]
MOST_BYTES = 6_000_000


def test_every_model_has_a_card_and_is_small() -> None:
    models = all_models()
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".onnx", ".md")} == {
        f"{model.name}{suffix}" for model in models for suffix in (".onnx", ".md")
    }
    assert STARTER in [Path(model.name) for model in models]
    for model in models:
        assert model.path.stat().st_size <= MOST_BYTES
        assert read_card(model.path).contrasts == ("T1w",)
        lines = model.introduction.split("\n")
        assert len(lines) == 2
        assert all(len(line) < 200 for line in lines)
        assert model.text.count(FIGURES) == 1
        # A new file needs new measurements.
        assert model.sha256 == hash_file(model.path)


def test_the_wheel_and_the_repository_hold_the_files() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    patterns = data["upfield.export.pretrained"]
    files = [path for model in all_models() for path in (model.path, model.path.with_suffix(".md"))]
    assert all(any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns) for path in files)
    if (ROOT / ".git").exists():
        ignored = subprocess.run(
            ["git", "check-ignore", "--no-index", *map(str, files)], cwd=ROOT, capture_output=True, check=False
        )
        assert ignored.stdout == b""


def test_the_default_of_enhance_and_serve_is_a_model_of_the_package(tmp_path: Path) -> None:
    config = EnhanceConfig([Path("scan.nii")], Path("out"))
    assert find_model(config.model) == find_model(ServeConfig().model) == model_named(str(STARTER)).path


def test_a_name_counts_before_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    STARTER.mkdir()
    assert find_model(STARTER) == model_named(str(STARTER)).path
    # A run may have any name.
    assert run_or_model(STARTER) == STARTER
    STARTER.rmdir()
    assert run_or_model(STARTER) == model_named(str(STARTER)).path
    assert run_or_model(Path("run")) == Path("run")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("starter", r"starter: no model with this name .* \(did you mean starter-t1\?\)\. Known models: starter-t1\."),
        ("zebra", r"zebra: no model with this name comes with the package\. Known models: starter-t1\."),
        (
            "starter-t1.onnx",
            r"starter-t1\.onnx: there is no such file\. For the model of the package, write starter-t1\.",
        ),
    ],
)
def test_a_name_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_model(Path(model))


@pytest.mark.parametrize("model", ["gone.onnx", "folder/model"])
def test_a_path_stays_as_it_is(model: str) -> None:
    assert find_model(Path(model)) == Path(model)


def test_only_files_of_the_package_have_a_version_and_a_caution(tmp_path: Path) -> None:
    starter = model_named(str(STARTER))
    copy = tmp_path / starter.path.name
    copy.write_bytes(starter.path.read_bytes())
    assert describe_model(starter.path) == {"model_version": starter.version, "model_caution": starter.caution}
    assert (model_at(copy), *describe_model(copy).values()) == (None, None, None)


def test_a_card_shows_the_metadata_of_its_file() -> None:
    starter = model_named(str(STARTER))
    tree, text = read_card(starter.path).tree, card_text(starter)
    assert text.startswith(f"# {starter.name}, version {starter.version}")
    assert FIGURES not in text
    assert tree["data_sha256"] in text
    assert str(tree["step"]) in text
    assert f"{tree['metrics']['validation']['psnr_slice']:.2f}" in text
    assert f"{tree['metrics']['test']['model']['psnr_slice_foreground']['mean']:.2f}" in text
    assert "mae_slice (lower)" in text
    assert all(str(result) in text for result in starter.measured.values())


def test_a_card_is_printed_without_heavy_libraries() -> None:
    program = (
        "import sys\n"
        "from upfield.cli.main import main\n"
        "assert main(['models', 'starter-t1']) == 0\n"
        "assert not {'torch', 'ray', 'onnxruntime', 'nibabel'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "## What it must not be used for" in done.stdout
