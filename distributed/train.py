"""`upfield train`: train AMIR. `accelerate launch distributed/train.py` and torchrun run it in many processes."""

import sys

from upfield.common.command import Command, execute
from upfield.common.stop_signals import stop_signals
from upfield.distributed.configuration import TrainConfig


def train(config: TrainConfig) -> int:
    """Train AMIR as configured, and return the exit code."""
    # The import takes seconds, and a signal may arrive during that time.
    with stop_signals(interrupt=True) as stop:
        from upfield.distributed.job import run_job

        return run_job(config, stop)


COMMAND = Command(
    "train",
    TrainConfig,
    train,
    examples=(
        "upfield train --data.shards shards --run.out run --model.preset tiny",
        "upfield train --config train.yaml --processes 2",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run `upfield train` with these arguments and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
