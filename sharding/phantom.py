"""`upfield phantom`: write a cohort of anatomically varied heads, as real pairs and as IXI-like volumes."""

import sys

from upfield.common.command import Command, execute
from upfield.sharding.configuration import PhantomConfig


def phantom(config: PhantomConfig) -> None:
    """Write the cohort and print what it holds.

    Raises:
        InputError: the folder holds something else, there are no label maps, or nilearn is not installed.
        VolumeError: a file does not hold a label map of a head.
    """
    from upfield.sharding.phantoms.cohort_writer import write_cohort

    write_cohort(config)


COMMAND = Command(
    "phantom",
    PhantomConfig,
    phantom,
    positional=("out",),
    examples=("upfield phantom cohort --subjects 6",),
)


def main(argv: list[str] | None = None) -> int:
    """Run `upfield phantom` and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
