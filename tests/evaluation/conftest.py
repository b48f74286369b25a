"""One evaluation for all tests, and one thread: the images are so small that more threads would only wait."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from upfield.evaluation.evaluate import main


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def evaluated(tiny_run: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report folder of `tiny_run`, on the split with several subjects, cohorts and kinds."""
    out = tmp_path_factory.mktemp("evaluation") / "report"
    arguments = [str(tiny_run), "--shards", str(tiny_shards), "--split", "train", "--out", str(out), "--save_volumes"]
    assert main(arguments) == 0
    return out
