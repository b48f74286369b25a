"""`upfield tune`: a Ray Tune sweep."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError, RunError
from upfield.sharding.tasks import connect_ray
from upfield.tune.configuration import SweepConfig

if TYPE_CHECKING:
    from upfield.distributed.configuration import TrainConfig


def sweep(config: SweepConfig) -> None:
    """Train every combination of the space, write results.csv, point best at the best run, and print the table."""
    import os

    import ray
    from ray import tune

    from upfield.distributed.train import with_absolute_paths

    assert config.out is not None
    if not config.space:
        raise InputError("space: expected at least one dotted training key with the values to try, found none")
    for key, values in config.space.items():
        if not values:
            raise InputError(f"space: {key}: expected at least one value to try, found none")
        for value in values:
            with_key(config.train, {key: value})
    out = config.out.absolute()
    # Trials report to this folder; Ray's own marks would print the same lines twice.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    refuse_incomplete(config)
    connect_ray()
    refuse_impossible(config, ray.cluster_resources())
    trainable = tune.with_resources(trial, {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial})
    space = {key: tune.grid_search(values) for key, values in config.space.items()}
    tuner = tune.Tuner(
        tune.with_parameters(trainable, base=with_absolute_paths(config.train), out=str(out)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="psnr_slice", mode="max", max_concurrent_trials=config.max_concurrent_trials
        ),
        run_config=tune.RunConfig(name="ray", storage_path=str(out), verbose=0),
    )
    results = tuner.fit()
    report([results[i] for i in range(len(results))], out)
    ray.shutdown()


def refuse_incomplete(config: SweepConfig) -> None:
    """Raise InputError where the training configuration lacks what every trial needs, a complete shard set first."""
    from upfield.distributed.source import read_set

    if config.train.data.shards is None:
        raise InputError("expected --train.data.shards, found none; give it, or its key in the configuration")
    read_set(config.train.data)


def refuse_impossible(config: SweepConfig, resources: Mapping[str, float]) -> None:
    """Raise InputError where no trial could ever be placed: Ray would wait for ever."""
    for name, needed in (("CPU", config.cpus_per_trial), ("GPU", config.gpus_per_trial)):
        if needed > resources.get(name, 0):
            raise InputError(
                f"{name.lower()}s_per_trial: expected at most {resources.get(name, 0):g}, all that this cluster has, "
                f"found {needed}"
            )


def trial(point: dict[str, Any], base: "TrainConfig", out: str) -> dict[str, Any]:
    """Train one combination with the same `fit` as `upfield train`, and give its best validation PSNR."""
    from dataclasses import replace

    from upfield.distributed.loop import fit

    name = "_".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in sorted(point.items()))
    config = with_key(base, point)
    run = Path(out) / "trials" / name
    progress = fit(replace(config, run=replace(config.run, out=run)))
    return {"psnr_slice": progress.best_psnr, "step": progress.step, "run": str(run)}


def with_key(base: "TrainConfig", point: dict[str, Any]) -> "TrainConfig":
    """Give a training configuration with dotted keys replaced.

    Raises:
        InputError: no such key, or a value that it cannot take.
    """
    from upfield.distributed.configuration import TrainConfig
    from upfield.sharding.command import from_tree, to_tree

    tree = to_tree(base)
    for key, value in point.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return from_tree(TrainConfig, tree, "space")


def last_line(error: Any) -> str:
    """Give the line of a remote traceback that says what happened."""
    return str(error).strip().splitlines()[-1]


def report(results: list[Any], out: Path) -> None:
    """Write results.csv, point `best` at the best run, and print the table.

    Raises:
        RunError: every trial failed.
    """
    import csv
    import io

    from upfield.sharding.atomic import point_symlink, write_text

    done = sorted((r for r in results if not r.error), key=lambda r: -r.metrics["psnr_slice"])
    if not done:
        raise RunError(
            f"{out}: expected a trial to finish, found all {len(results)} failed: {last_line(results[0].error)}"
        )
    rows = [{**r.config, **{name: r.metrics[name] for name in ("psnr_slice", "step", "run")}} for r in done]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "results.csv", buffer.getvalue())
    point_symlink(out / "best", str(Path(rows[0]["run"]).relative_to(out)))
    print(buffer.getvalue().rstrip())
    if failed := len(results) - len(done):
        print(f"{failed} of {len(results)} trials failed; see {out / 'ray'}")


COMMAND = Command("tune", SweepConfig, sweep, required=("out",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
