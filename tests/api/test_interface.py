"""The Python interface: its examples run, it is typed and documented, and importing it loads nothing heavy."""

import doctest
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from faulty import FaultyServer
from heads import write_scan

import upfield

CLASSES = [name for name in upfield.__all__ if inspect.isclass(getattr(upfield, name))]
FUNCTIONS = [name for name in upfield.__all__ if inspect.isfunction(getattr(upfield, name))]


@pytest.fixture(scope="module")
def examples(tiny_cohort: Path, tiny_shards: Path, tiny_run: Path, tiny_model: Path, tmp_path_factory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    targets = {"cohorts.yaml": tiny_cohort / "cohorts.yaml", "real": tiny_cohort / "real"}
    targets |= {"IXI-T1": tiny_cohort / "IXI-T1", "shards": tiny_shards, "run": tiny_run, "model.onnx": tiny_model}
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    write_scan(folder / "scan.nii.gz", "PSR")
    return folder


def doctests() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(upfield, "upfield", globs={})
    for name in [*CLASSES, *FUNCTIONS]:
        found += finder.find(getattr(upfield, name), name, globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", doctests(), ids=lambda example: example.name)
def test_an_example_runs(
    example: doctest.DocTest, examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(examples)
    with warnings.catch_warnings():
        # The scan is as thick as a low-field scan, and shows half a head.
        warnings.simplefilter("ignore", UserWarning)
        result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.failed == 0, capsys.readouterr().out


def test_all_names_have_examples_and_none_is_skipped() -> None:
    tested = {test.name.split(".")[0] for test in doctests()}
    assert tested == {*CLASSES, *FUNCTIONS, "upfield"}
    assert not [test.name for test in doctests() for line in test.examples if doctest.SKIP in line.options]


def test_importing_loads_no_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import upfield; dir(upfield); "
        "print(*sorted({name.split('.')[0] for name in sys.modules.keys() - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["upfield"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'upfield' has no attribute 'enhanse'"):
        upfield.enhanse  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_report_is_written_if_its_folder_is_named_and_nothing_is_printed(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = examples / "model.onnx", examples / "shards", "val"
    upfield.evaluate(*arguments)
    assert list(tmp_path.iterdir()) == []
    tree = upfield.evaluate(*arguments, tmp_path / "report", save_volumes=True)
    assert (tmp_path / "report/report.html").is_file()
    written = json.loads((tmp_path / "report/metrics.json").read_text())
    assert written["model"] == json.loads(json.dumps(tree["model"]))
    assert capsys.readouterr().out == ""


def test_arguments_out_of_range_are_input_errors(examples: Path, tmp_path: Path) -> None:
    model, shards = examples / "model.onnx", examples / "shards"
    for call in (
        lambda: upfield.enhance([], tmp_path, model),
        lambda: upfield.enhance(examples / "scan.nii.gz", tmp_path, model, batch_size=0),
        lambda: upfield.evaluate(model, shards, batch_size=0),
        lambda: upfield.evaluate(model, shards, save_volumes=True),
        lambda: upfield.evaluate(model, shards, split="all"),  # pyright: ignore[reportArgumentType]
        lambda: upfield.evaluate(model, examples),
        lambda: upfield.build_shards(examples / "none.yaml", tmp_path / "set"),
        lambda: upfield.build_shards(examples / "cohorts.yaml"),
        lambda: upfield.build_shards(examples / "cohorts.yaml", tmp_path / "set", jobs=-1),
        lambda: upfield.open_shards(shards).split("tests"),
        lambda: upfield.load_model(model, batch_size=0),
        lambda: upfield.load_model(model, engine="tf"),  # pyright: ignore[reportArgumentType]
        lambda: upfield.open_shards(shards, fetch="all"),  # pyright: ignore[reportArgumentType]
        lambda: upfield.evaluate(model, shards, device="gpu"),  # pyright: ignore[reportArgumentType]
        lambda: upfield.enhance(examples / "scan.nii.gz", tmp_path, device="gpu"),  # pyright: ignore[reportArgumentType]
        lambda: upfield.read_scan(examples),
    ):
        with pytest.raises(upfield.InputError):
            call()


def test_numbers_of_pairs_count_from_both_ends(examples: Path) -> None:
    split = upfield.open_shards(examples / "shards").split("val")
    assert split[-1].key == split[len(split) - 1].key
    with pytest.raises(IndexError, match="split val has 20 pairs"):
        split[20]


def test_a_remote_set_is_read_with_its_cache(tiny_shards: Path, http_store: FaultyServer, tmp_path: Path) -> None:
    for fetch in ("shards", "samples"):
        remote = upfield.open_shards(http_store.url, cache_dir=tmp_path / fetch, fetch=fetch)
        own = upfield.open_shards(tiny_shards)
        pairs = zip(remote.split("val").slices(), own.split("val").slices(), strict=True)
        assert all(np.array_equal(one.low, other.low) and one.record == other.record for one, other in pairs)
    assert list((tmp_path / "shards").rglob("*.tar"))
    with pytest.raises(upfield.InputError, match=r"cache_bytes: expected at least 1, found 0"):
        upfield.open_shards(http_store.url, cache_bytes=0)
