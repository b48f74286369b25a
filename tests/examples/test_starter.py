"""The configurations of the starter model are those of its commands."""

from pathlib import Path

from upfield.common.command import parse
from upfield.distributed.train import COMMAND as TRAIN
from upfield.sharding.shard import COMMAND as SHARD

STARTER = Path(__file__).parents[2] / "examples/starter"


def test_the_commands_read_the_configurations() -> None:
    shard = parse(SHARD, ["--config", f"{STARTER}/cohorts.yaml", "--out", "set", "--root", "data"])
    for measured in ("held_out", "ixi"):
        assert parse(SHARD, ["--config", f"{STARTER}/{measured}.yaml", "--out", measured, "--root", "data"]).cohorts
    names = {cohort.name for cohort in shard.cohorts}
    train = parse(TRAIN, ["--config", f"{STARTER}/train.yaml", "--data.shards", "set", "--run.out", "run"])
    assert train.data.mix is not None
    # A share of a cohort that does not exist would be refused only after the set has been built.
    assert set(train.data.mix.cohort) <= names
