"""A cohort for tests of building."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that tests may change."""
    return shutil.copytree(tiny_cohort, tmp_path / "cohort")
