import pytest

from upfield.common.command import parse
from upfield.common.errors import InputError
from upfield.common.grammar.configuration_errors import OWN_KEYS
from upfield.common.grammar.yaml_files import load_yaml, read_yaml
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.train import COMMAND as TRAIN
from upfield.evaluation.configuration import EvaluateConfig
from upfield.export.configuration import EnhanceConfig, ServeConfig
from upfield.sharding.configuration import ShardConfig
from upfield.tune.configuration import SweepConfig

SCHEMAS = {
    "shard": ShardConfig,
    "tune": SweepConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "enhance": EnhanceConfig,
    "serve": ServeConfig,
}


def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("data: {shards: a}\nrun:\n  out: b\n  seed: 1\n  out: c\n")
    with pytest.raises(InputError, match=r"train.yaml: the key out is given twice, in lines 3 and 5\. Remove one"):
        parse(TRAIN, ["--config", str(file)])


def test_a_merged_key_may_be_replaced():
    assert load_yaml("{a: &x {b: 1, c: 2}, d: {<<: *x, b: 3}}")["d"] == {"b": 3, "c": 2}


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\x1f\x8b\x08\x00\xff")
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        read_yaml(tmp_path / "a.yaml")


def test_the_file_of_another_command_is_recognised(tmp_path):
    (tmp_path / "cohorts.yaml").write_text("cohorts: []")
    with pytest.raises(InputError, match="the key cohorts belongs to a configuration of `upfield shard`, not of `upf"):
        parse(TRAIN, ["--config", str(tmp_path / "cohorts.yaml"), "--data.shards", "a", "--run.out", "b"])


@pytest.mark.parametrize("verb", OWN_KEYS)
def test_the_keys_by_which_a_file_is_recognised_exist(verb):
    assert set(OWN_KEYS[verb]) <= set(SCHEMAS[verb].__dataclass_fields__)
