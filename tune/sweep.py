"""`upfield tune`: search training configurations with Ray Tune."""

import sys

from upfield.common.command import Command, execute
from upfield.tune.configuration import SweepConfig


def sweep(config: SweepConfig) -> None:
    """Train the points of the space and write the results."""
    from upfield.tune.driver import run_sweep

    run_sweep(config)


COMMAND = Command("tune", SweepConfig, sweep, examples=("upfield tune --config sweep.yaml --out sweep",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
