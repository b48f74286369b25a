"""`upfield audit`: compare the synthetic low field of a set with real low-field scans."""

import sys

from upfield.common.command import Command, execute
from upfield.sharding.configuration import AuditConfig


def audit(config: AuditConfig) -> None:
    """Print tables, and write them as JSON and as a picture.

    Raises:
        InputError: the output cannot be written, a scan cannot be used, or the set has too few synthetic volumes.
        ShardSetError: there is no complete shard set, or it is damaged.
    """
    from upfield.sharding.coverage.coverage_report import write_report

    write_report(config)


COMMAND = Command(
    "audit",
    AuditConfig,
    audit,
    positional=("shards", "scans"),
    examples=("upfield audit shards scans/*.nii.gz --out audit.json",),
)


def main(argv: list[str] | None = None) -> int:
    """Run `upfield audit` and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
