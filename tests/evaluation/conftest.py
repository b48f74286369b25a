"""One evaluation for all tests."""

from pathlib import Path

import pytest

from upfield.evaluation.evaluate import main


@pytest.fixture(scope="session")
def evaluated(tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report folder of `tiny_run`, on the split with several subjects, cohorts and kinds."""
    out = tmp_path_factory.mktemp("evaluation") / "report"
    arguments = [str(tiny_run), "--shards", str(tiny_shards), "--split", "train", "--out", str(out), "--save_volumes"]
    assert main(arguments) == 0
    return out
