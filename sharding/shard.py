"""`upfield shard`: build shards from cohorts, or extend a set with a new cohort."""

import sys

from upfield.common.command import Command, execute
from upfield.sharding.configuration import ShardConfig


def shard(config: ShardConfig) -> None:
    """Build the set, in a folder or at an address, and print what it holds."""
    from upfield.sharding.building.destination import build_at_destination, print_summary

    print_summary(config.out, build_at_destination(config))


COMMAND = Command(
    "shard",
    ShardConfig,
    shard,
    folder_of={"root": "cohorts"},
    examples=("upfield shard --config cohort/cohorts.yaml --out shards",),
)


def main(argv: list[str] | None = None) -> int:
    """Run `upfield shard` and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
