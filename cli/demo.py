"""`upfield demo`: every stage on phantoms, from a cohort to an enhanced scan and a report."""

import sys

from upfield.cli.configuration import DemoConfig
from upfield.common.command import Command, execute


def demo(config: DemoConfig) -> None:
    """Run every stage and write the report."""
    from upfield.cli.demonstration import run_demonstration

    run_demonstration(config)


COMMAND = Command("demo", DemoConfig, demo, examples=("upfield demo --out demo",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
