"""The hash by which nodes are compared covers every module of the package."""

import shutil
import tomllib
from pathlib import Path

import pytest

from upfield.tune.cluster import hash_code, hash_own_code

ROOT = Path(__file__).parents[2]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as it is installed, without the rest of the checkout."""
    site = tmp_path_factory.mktemp("site")
    for package, folder in PACKAGES.items():
        target = site / package.replace(".", "/")
        shutil.copytree(ROOT / folder, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return site / "upfield"


def test_a_checkout_and_an_installation_of_the_same_code_have_the_same_hash(package: Path) -> None:
    assert hash_code(package) == hash_own_code()


def test_a_change_in_any_folder_changes_the_hash(package: Path) -> None:
    for file in sorted(package.rglob("__init__.py")):
        before, text = hash_code(package), file.read_text()
        file.write_text(f"{text}# another version\n")
        assert hash_code(package) != before, file
        file.write_text(text)
