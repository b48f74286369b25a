"""`upfield tune`: search training configurations with Ray Tune."""

import sys
from pathlib import Path

from upfield.common.command import Command, execute
from upfield.tune.configuration import SweepConfig


def sweep(config: SweepConfig) -> None:
    """Run the sweep that `config` describes."""
    from upfield.tune.driver import run_sweep

    run_sweep(config)


# Each trial gets a folder of its own for its run.
COMMAND = Command("tune", SweepConfig, sweep, preset={"train.run.out": Path("set-per-trial")})


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
