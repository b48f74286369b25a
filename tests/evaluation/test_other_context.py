"""A shard set serves models of every context, with the values that a set of the model's own context gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from upfield.evaluation.measure import MeasurementSettings, measure_listed
from upfield.evaluation.stacked_pairs import read_pair
from upfield.export.modelfile.parity_slices import read_parity_slices
from upfield.sharding.shard import main
from upfield.sharding.shardset.configuration import AccessConfig
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes


class Slope:
    """A model whose output depends on the order of the slices."""

    normalisation = ""

    def __init__(self, context: int) -> None:
        self.context = context

    def restore(self, low: np.ndarray) -> np.ndarray:
        """Map `(N, 1 + 2*context, H, W)` to `(N, 1, H, W)`."""
        weights = np.arange(1, 2 + 2 * self.context, dtype=np.float32)
        return np.einsum("nchw,c->nhw", low, weights / weights.sum())[:, None]


@pytest.fixture(scope="module")
def contexts(tiny_cohort: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Shard sets of one cohort, by context."""
    out = tmp_path_factory.mktemp("context") / "2"
    arguments = ["--config", tiny_cohort / "cohorts.yaml", "--out", out, "--jobs", 1, "--context", 2]
    assert main(list(map(str, arguments))) == 0
    return {0: tiny_shards, 2: out}


@pytest.mark.parametrize(("stored", "taken"), [(0, 2), (2, 0)])
def test_a_model_gets_the_same_slices_from_a_set_of_another_context(
    contexts: dict[int, Path], stored: int, taken: int
) -> None:
    splits = [ShardSplit(contexts[context], "test") for context in (stored, taken)]
    other, own = (read_pair(split, group_volumes(split)[0]) for split in splits)
    np.testing.assert_array_equal(other.with_neighbours(taken), own.low)
    np.testing.assert_array_equal(other.with_neighbours(taken, slice(19, 20)), own.low[19:])


def test_measurements_are_those_of_a_set_with_the_models_context(contexts: dict[int, Path]) -> None:
    settings = MeasurementSettings({"cubic": None, "model": Slope(2)}, 7, perturb=True, device=torch.device("cpu"))
    splits = [ShardSplit(contexts[context], "test") for context in (0, 2)]
    other, own = (measure_listed(settings, split, group_volumes(split)[0]) for split in splits)
    assert other.images
    assert own.images
    assert not other.failures
    for name in ("restored", "disagreement"):
        np.testing.assert_array_equal(getattr(other.images, name)["model"], getattr(own.images, name)["model"])


def test_a_model_file_is_compared_on_the_same_slices(contexts: dict[int, Path]) -> None:
    other, own = (read_parity_slices(open_set(contexts[context], AccessConfig()), 2) for context in (0, 2))
    np.testing.assert_array_equal(other.low, own.low)
    np.testing.assert_array_equal(other.high, own.high)
