"""What tests of building share: arguments of `upfield shard`, and what is in a set."""

import json

from upfield.common.files import write_json
from upfield.sharding.shardset.manifest import hash_manifest
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


def as_by_an_earlier_version(root):
    """Remove the indices of the splits, as if a version that did not write them had built the set."""
    tree = json.loads((root / "manifest.json").read_text())
    for split in tree["splits"].values():
        if "index" in split:
            (root / split.pop("index")["name"]).unlink()
    write_json(root / "manifest.json", tree | {"manifest_sha256": hash_manifest(tree)})
    return root
