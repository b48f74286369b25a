"""`upfield train`: trains. `accelerate launch distributed/train.py` and torchrun run the same on many processes."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from upfield.common.addresses import is_remote
from upfield.common.command import EXIT_FAILURE, EXIT_INPUT, Command, execute
from upfield.common.errors import InputError, RunError
from upfield.distributed.configuration import TrainConfig

if TYPE_CHECKING:
    from upfield.common.stop_signals import StopRequest


def train(config: TrainConfig) -> int:
    """Check the configuration, start more processes if they are asked for, and train."""
    from upfield.common.stop_signals import stop_signals

    # What is imported next takes seconds, in which a scheduler may change its mind.
    with stop_signals() as stop:
        from upfield.distributed.assembly import refuse_before_launch
        from upfield.distributed.launch import relaunch

        config = with_absolute_paths(config)
        if config.processes > 1 and "WORLD_SIZE" not in os.environ:
            refuse_before_launch(config)
            return relaunch(Path(__file__), config, stop)
        return train_here(config, stop)


def train_here(config: TrainConfig, stop: "StopRequest") -> int:
    """Train as one process of however many there are, and give its exit code; what all meet, one of them says."""
    from upfield.common.tasks import end_with_parent
    from upfield.distributed.agreement import lost_another
    from upfield.distributed.launch import asked_world_size
    from upfield.distributed.loop import fit

    if asked_world_size() > 1:
        end_with_parent()
    try:
        progress = fit(config, stop)
    except (InputError, RunError) as error:
        if error.met_by_all and not speaks():
            return EXIT_INPUT if isinstance(error, InputError) else EXIT_FAILURE
        raise
    except RuntimeError as error:
        if not lost_another(error):
            raise
        if not speaks():
            return EXIT_FAILURE
        raise RunError(
            "expected all processes of the job to take part, found one gone or silent for "
            f"{config.run.timeout_s:g} s (run.timeout_s); see its own error, and start the same command again"
        ) from error
    if os.environ.get("RANK", "0") == "0":
        best = "none yet" if progress.best_psnr is None else f"{progress.best_psnr:.2f} dB"
        print(f"{config.run.out}: step {progress.step}, best validation PSNR {best}")
    return config.run.stopped_code if stop.agreed else 0


def speaks() -> bool:
    """Tell whether this process is the one of its machine that says what all of them know."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Give the configuration with absolute paths: what travels with a run is read from other folders."""

    def absolute(path: Path | None) -> Path | None:
        return path and path.absolute()

    resume = config.run.resume if config.run.resume in ("auto", "none") else str(Path(config.run.resume).absolute())
    return replace(
        config,
        data=replace(
            config.data,
            shards=config.data.shards if is_remote(str(config.data.shards)) else Path(config.data.shards).absolute(),
            trace=absolute(config.data.trace),
            cache_dir=absolute(config.data.cache_dir),
        ),
        model=replace(config.model, init=absolute(config.model.init)),
        run=replace(config.run, out=config.run.out.absolute(), resume=resume),
    )


COMMAND = Command("train", TrainConfig, train)


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
