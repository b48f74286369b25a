"""`upfield shard`: builds shards from cohorts."""

import sys

from upfield.sharding.command import Command, execute
from upfield.sharding.configuration import ShardConfig


def shard(config: ShardConfig) -> None:
    """Build the set and print what it holds."""
    from upfield.sharding.build import build
    from upfield.sharding.cohort import SPLITS
    from upfield.sharding.manifest import read_manifest

    assert config.out is not None
    build(config, config.out)
    manifest = read_manifest(config.out)
    print(f"{config.out}: data {manifest.data_sha256[:12]}")
    for split in SPLITS:
        entries = manifest.shards(split)
        samples, size = sum(entry.samples for entry in entries), sum(entry.bytes for entry in entries)
        subjects = len(manifest.subjects(split))
        print(
            f"  {split:<5} {subjects:>5} subjects {samples:>8} samples {len(entries):>5} shards {size / 1e6:>9.1f} MB"
        )


COMMAND = Command("shard", ShardConfig, shard, required=("out",), folder_of={"root": "cohorts"})


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
