"""What tests of building share: arguments of `upfield shard`, and what is in a set."""

from upfield.sharding.shardset.shard_split import ShardSplit


def arguments(cohort, out, *more):
    return ["--config", str(cohort / "cohorts.yaml"), "--out", str(out), "--jobs", "1", *more]


def contents(root):
    """Bytes of each shard, index and manifest."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def records(root, split):
    opened = ShardSplit(root, split)
    return [opened.record(number) for number in range(opened.num_samples)]
