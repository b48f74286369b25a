"""`upfield verify`: check a shard set against its manifest and index."""

import sys

from upfield.common.command import Command, execute
from upfield.sharding.configuration import VerifyConfig


def verify(config: VerifyConfig) -> None:
    """Check the set and print a line for each problem.

    Raises:
        ShardSetError: the set does not match its manifest, or has none.
    """
    from upfield.sharding.verification.set_check import verify_set

    verify_set(config)


COMMAND = Command(
    "verify",
    VerifyConfig,
    verify,
    positional=("shards",),
    examples=("upfield verify shards", "upfield verify s3://bucket/shards --quick"),
)


def main(argv: list[str] | None = None) -> int:
    """Run `upfield verify` and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
