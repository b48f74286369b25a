"""`upfield demo`: every stage on phantoms, from a cohort to an enhanced scan and a report."""

import sys

from upfield.cli.configuration import DemoConfig
from upfield.cli.demo_folder import Places, prepare_folder
from upfield.cli.stage_output import introduction
from upfield.common.command import Command, execute
from upfield.common.drawing import expect_matplotlib
from upfield.common.progress import say


def demo(config: DemoConfig) -> None:
    """Say what will happen, run every stage, and write the report."""
    places = Places(config.out)
    expect_matplotlib()
    prepare_folder(config.out)
    say(introduction(places.out, places.log))
    # The text comes first, because these imports take seconds.
    from upfield.cli.demonstration import run_demonstration

    run_demonstration(config, places)


COMMAND = Command("demo", DemoConfig, demo, examples=("upfield demo --out demo",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
