"""The dispatcher knows every verb, and each verb has its own help."""

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from upfield.cli.demo_folder import prepare_folder
from upfield.cli.main import VERBS, main
from upfield.common.errors import InputError


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_help(verb: str, run_cli: Callable) -> None:
    code, out, err = run_cli(main, verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: upfield {verb}")
    assert "--config" in out


def test_help_lists_the_verbs(run_cli: Callable) -> None:
    code, out, _ = run_cli(main, "--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)


def test_the_version_is_that_of_the_package(run_cli: Callable) -> None:
    assert run_cli(main, "--version")[1].strip() == f"upfield {version('upfield')}"


@pytest.mark.parametrize(("word", "meant"), [("shards", "shard"), ("sweep", "tune")])
def test_an_unknown_verb_is_refused(run_cli: Callable, word: str, meant: str) -> None:
    code, _, err = run_cli(main, word)
    assert code == 2
    assert f"unknown verb {word} (did you mean {meant}?). Run `upfield` to list the verbs." in err


def test_serve_needs_a_model(run_cli: Callable) -> None:
    code, _, err = run_cli(main, "serve", "nowhere.onnx")
    assert code == 2
    assert "nowhere.onnx: there is no such file" in err


def test_without_matplotlib_the_demonstration_does_not_begin(
    tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run_cli(main, "demo", "--out", tmp_path / "demo")
    assert code == 2
    assert "pip install 'upfield[demo]'" in err
    assert not (tmp_path / "demo").exists()


def test_the_demonstration_replaces_only_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    prepare_folder(out)
    (out / "shards").mkdir()
    prepare_folder(out)
    assert not (out / "shards").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(InputError, match="holds files that upfield demo did not write"):
        prepare_folder(tmp_path / "thesis")
    with pytest.raises(InputError, match=r"cannot write there .* Choose another --out"):
        prepare_folder(tmp_path / "thesis" / "chapter1.tex")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()
