"""The grids of the training data come from the run, or from the shards of a run that does not record them."""

from dataclasses import replace
from pathlib import Path

import pytest

from upfield.common.errors import InputError
from upfield.export.modelfile.card import read_card
from upfield.export.modelfile.parity_slices import training_geometry
from upfield.model.weights import read_best
from upfield.sharding.shardset.configuration import AccessConfig
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.shard_set import open_set


def test_the_grids_of_the_training_data_reach_the_model_file(tiny_run: Path, tiny_model: Path, tiny_shards: Path):
    grids = read_manifest(tiny_shards).geometry
    assert read_best(tiny_run / "best").geometry == grids
    assert list(read_card(tiny_model).geometry.high_shape) == grids["high_shape"]


def test_a_run_of_an_older_version_takes_its_grids_from_its_own_shards_only(tiny_run: Path, tiny_shards: Path):
    older = replace(read_best(tiny_run / "best"), geometry=None)
    shards = open_set(tiny_shards, AccessConfig())
    assert training_geometry(older, shards, tiny_run) == shards.manifest.geometry
    with pytest.raises(InputError, match=r"is not the shard set .* Name that set with --shards"):
        training_geometry(replace(older, data_sha256="0"), shards, tiny_run)
