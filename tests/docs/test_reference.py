"""The reference describes every file and key that the commands write, and its generated parts come from the code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generated
import hooks
import onnx
import pytest
from pages import DOCS, INLINE_CODE, PAGES, prose

from upfield.cli.main import VERBS

REFERENCE = DOCS / "reference"


def described(page: str) -> str:
    return (REFERENCE / page).read_text(encoding="utf-8")


def undescribed(names: Any, page: str) -> list[str]:
    """Return the names that do not stand in code on a page."""
    codes = " ".join(INLINE_CODE.findall(prose(described(page))))
    return sorted(name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", codes))


def lines_of(run: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())


def test_every_command_has_a_page() -> None:
    assert {path.stem for path in (REFERENCE / "commands").glob("*.md")} == {"index", *VERBS}


def test_every_key_of_the_log_is_defined(tiny_run: Path) -> None:
    # `_median` and so on, and `cubic_`, are defined for all metrics together.
    keys = {re.sub(r"^cubic_|_(median|std|min|max)$", "", key) for line in lines_of(tiny_run) for key in line}
    assert undescribed(keys, "run.md") == []


def test_every_file_of_a_run_is_described(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    text = described("run.md")
    assert [name for name in sorted(names) if name not in text] == []


def test_every_key_of_the_best_models_record_is_described(tiny_run: Path) -> None:
    record = json.loads((tiny_run / "best/metrics.json").read_text(encoding="utf-8"))
    assert undescribed(record, "run.md") == []


def test_every_key_of_a_model_file_is_described(tiny_model: Path) -> None:
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(tiny_model).metadata_props}
    assert undescribed({*entries, *entries["parity"]}, "model-file.md") == []


def test_every_key_of_a_manifest_is_described(tiny_shards: Path) -> None:
    manifest = json.loads((tiny_shards / "manifest.json").read_text(encoding="utf-8"))
    split = manifest["splits"]["train"]
    assert undescribed({*manifest, *split, *split["index"], *split["shards"][0]}, "shards.md") == []


def test_each_part_that_a_page_asks_for_is_made() -> None:
    places = [match for path in PAGES for match in hooks.PLACE.finditer(path.read_text(encoding="utf-8"))]
    assert {match[1] for match in places} == generated.PARTS.keys()
    assert "<!-- generated" not in hooks.on_page_markdown(described("cohorts.md"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_of_a_command_is_on_a_page(verb: str) -> None:
    pages = {
        path: path.read_text(encoding="utf-8") for path in (REFERENCE / f"commands/{verb}.md", REFERENCE / "cohorts.md")
    }
    names = set(re.findall(r'<code id="([\w.]+)">', "".join(map(hooks.on_page_markdown, pages.values()))))
    keys = {key.key.replace("[]", "") for key in generated.describe_keys(generated.command_of(verb).schema)}
    # Training keys of a sweep are on the page of `train`.
    assert {key for key in keys if not key.startswith("train.")} <= names
