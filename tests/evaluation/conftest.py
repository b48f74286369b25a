"""One evaluation for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from upfield.evaluation.evaluate import main


@pytest.fixture(scope="session")
def evaluated(tiny_run: Path, tiny_shards: Path, build_once: Callable[..., Path]) -> Path:
    """The report folder of `tiny_run`, on the split with several subjects, cohorts and kinds."""

    def write(folder: Path) -> None:
        arguments = [str(tiny_run), "--shards", str(tiny_shards), "--split", "train", "--out", str(folder / "report")]
        assert main([*arguments, "--save_volumes"]) == 0

    return build_once("evaluation", write) / "report"
