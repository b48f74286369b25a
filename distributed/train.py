"""`upfield train`: trains. `accelerate launch distributed/train.py` and torchrun run the same on many processes."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from upfield.distributed.configuration import TrainConfig
from upfield.sharding.address import is_remote
from upfield.sharding.command import Command, execute


def train(config: TrainConfig) -> int:
    """Check the configuration, start more processes if they are asked for, and train."""
    from upfield.distributed.assembly import open_inputs
    from upfield.distributed.launch import asked_world_size, refuse_uneven_batch, relaunch
    from upfield.distributed.loop import fit

    config = with_absolute_paths(config)
    if config.processes > 1 and asked_world_size() == 1:
        refuse_uneven_batch(config.data.batch_size, config.processes)
        open_inputs(config)  # A launcher would bury a refusal under its own traceback.
        return relaunch(config)
    progress = fit(config)
    if os.environ.get("RANK", "0") == "0":
        print(
            f"{config.run.out}: step {progress.step}, best validation PSNR {progress.best_psnr or float('nan'):.2f} dB"
        )
    return 0


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Give the configuration with absolute paths: what travels with a run is read from other folders."""

    def absolute(path: str | Path | None) -> Path | None:
        return Path(path).absolute() if path else None

    return replace(
        config,
        data=replace(
            config.data,
            shards=config.data.shards if is_remote(str(config.data.shards)) else absolute(config.data.shards),
            trace=absolute(config.data.trace),
            cache_dir=absolute(config.data.cache_dir),
        ),
        model=replace(config.model, init=absolute(config.model.init)),
        run=replace(config.run, out=absolute(config.run.out)),
    )


COMMAND = Command("train", TrainConfig, train)


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
