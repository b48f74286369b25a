from pathlib import Path

import pytest

from upfield.common.command import parse
from upfield.common.errors import InputError
from upfield.distributed.train import COMMAND as TRAIN
from upfield.export.enhance import COMMAND as ENHANCE
from upfield.export.models import COMMAND as MODELS
from upfield.sharding.phantom import COMMAND as PHANTOM
from upfield.sharding.shard import COMMAND as SHARD


@pytest.mark.parametrize(
    ("command", "arguments", "place"),
    [
        (TRAIN, ["--data.shards", "a", "--run.out", ""], "--run.out"),
        (SHARD, ["--out="], "--out"),
        (MODELS, [""], "--name"),
        (ENHANCE, ["a.nii", "", "--out", "b"], r"--scans\[1\]"),
    ],
)
def test_empty_values_are_refused(command, arguments, place):
    with pytest.raises(InputError, match=f"{place}: the value is empty"):
        parse(command, arguments)


def test_a_fraction_is_no_key_of_a_label_map(tmp_path):
    file = tmp_path / "cohorts.yaml"
    file.write_text("cohorts: [{name: a, labels: '{subject}', labels_as: {1.5: fat}}]")
    with pytest.raises(InputError, match=r"cohorts\[0\].labels_as: expected whole numbers as keys, found 1.5"):
        parse(SHARD, ["--config", str(file), "--out", "x"])
    with pytest.raises(InputError, match=r"--labels_as: expected whole numbers as keys, found 1\.5"):
        parse(PHANTOM, ["x", "--labels", "y", "--labels_as", "{1.5: fat}"])


def test_the_home_folder_is_expanded_in_paths_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "cohorts.yaml"
    file.write_text("cohorts: [{name: a, high: '~/ixi/{subject}.nii.gz'}]")
    config = parse(SHARD, ["--config=~/cohorts.yaml", "--out=~/set", "--save_volumes=~/volumes"])
    assert config.out == str(tmp_path / "set")
    assert config.save_volumes == tmp_path / "volumes"
    assert config.cohorts[0].high == str(tmp_path / "ixi/{subject}.nii.gz")
    assert parse(ENHANCE, ["~/a.nii", "--out", "b"]).scans == [tmp_path / "a.nii"]
    assert parse(TRAIN, ["--data.shards", "~/set", "--run.out", "b"]).data.shards == str(tmp_path / "set")


def test_other_values_keep_a_tilde():
    assert parse(ENHANCE, ["a~b.nii", "--out", "b~"]).out == Path("b~")
