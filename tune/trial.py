"""One trial: a point of the space trained through the same `fit` as `upfield train`, reporting to Ray Tune."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train import RunConfig as TrainerConfig
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from upfield.common.command import from_tree, to_tree
from upfield.common.errors import DivergedError, InputError, RunError
from upfield.common.locking import LOCK
from upfield.common.stop_signals import StopRequest
from upfield.distributed.agreement import is_held
from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.configuration import TrainConfig
from upfield.distributed.loop import fit
from upfield.tune.configuration import ResourceConfig
from upfield.tune.space import name_of, with_point

METRIC, EPOCH, FAILED, FINISHED, POINT = "best_psnr_slice", "epoch", "failed", "finished", "point"
REPEAT = "__trial_index__"  # What Ray's Repeater calls the number of a repetition.
# What no second try would do better.
FINAL = (InputError, DivergedError)
# NFS keeps a dead node's locks for 90 s.
PATIENCE_S = 180.0
NOT_UPLOADED = ("last", LOCK, "tensorboard", "*.tmp*")


@dataclass(frozen=True)
class Trials:
    """What all trials of a sweep share."""

    base: TrainConfig
    """What points change."""
    out: str
    """Folder for their runs, the same on all nodes; empty where they train on disks of their own."""
    resources: ResourceConfig
    """What each takes, with a number of GPUs."""


def point_of(given: Mapping[str, Any], base: TrainConfig) -> dict[str, Any]:
    """Give the point of a trial from what Ray hands to it."""
    if POINT in given:
        return dict(given[POINT])
    point = {key: value for key, value in given.items() if key != REPEAT}
    return point | ({"run.seed": base.run.seed + given[REPEAT]} if REPEAT in given else {})


def run_trial(given: dict[str, Any], trials: Trials) -> dict[str, Any]:
    """Train a point, from its last checkpoint where it has one, and give its last report.

    What no second try would do better ends the trial as failed; anything else is raised, and Ray tries again.

    Args:
        given: the point, as Ray has it.
        trials: what it shares with the others.
    """
    point = point_of(given, trials.base)
    config = with_point(trials.base, point)
    with place(trials.out, name_of(point)) as run:
        config = replace(config, run=replace(config.run, out=run, resume="auto"), processes=1)
        wait_until_free(run)
        if trials.resources.workers_per_trial > 1:
            return train_on_workers(config, trials.resources)
        if not trials.resources.gpus_per_worker:
            hide_gpus()
        reports = Reports(run, tune.report, uploads=not trials.out)
        try:
            progress = fit(config, StopRequest(), reports.validated)
        except FINAL as error:
            return failure(run, str(error))
        return reports.last(progress)


def hide_gpus() -> None:
    """Let this process train on the CPU: Ray leaves GPUs in sight of those that asked for none."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@contextmanager
def place(out: str, name: str) -> Iterator[Path]:
    """Give the folder of a trial's run: below `out`, or one of this node's with what was uploaded from another."""
    if out:
        yield Path(out) / name
        return
    with tempfile.TemporaryDirectory(prefix="upfield-trial-") as folder:
        run = Path(folder) / name
        if uploaded := tune.get_checkpoint():
            uploaded.to_directory(run)
        yield run


def wait_until_free(run: Path) -> None:
    """Wait for an earlier process of this trial, whose driver or node was killed, to be gone.

    Raises:
        RunError: it is still there.
    """
    until = time.monotonic() + PATIENCE_S
    while is_held(run):
        if time.monotonic() > until:
            raise RunError(
                f"{run}: expected the trial's earlier process to be gone within {PATIENCE_S:g} s, found its lock held; "
                "end it, and start the same sweep again"
            )
        time.sleep(1)


def failure(run: Path, problem: str) -> dict[str, Any]:
    """Give the report of a trial that cannot be trained."""
    return {METRIC: -math.inf, "psnr_slice": -math.inf, EPOCH: 0.0, "step": 0, FAILED: problem}


class Reports:
    """Reports of one trial's validations."""

    def __init__(self, run: Path, send: Callable[..., None], uploads: bool) -> None:
        """Begin.

        Args:
            run: folder of the trial's run.
            send: `tune.report`, or `ray.train.report` in a worker.
            uploads: send the run with each report.
        """
        self._run, self._send, self._uploads = run, send, uploads
        self._sent: dict[str, Any] = {}

    def validated(self, progress: TrainingProgress, epoch: float, figures: Mapping[str, float]) -> None:
        """Report a validation."""
        self._sent = {
            METRIC: -math.inf if progress.best_psnr is None else progress.best_psnr,
            "psnr_slice": figures["psnr_slice"],
            "cubic_psnr_slice": figures["cubic_psnr_slice"],
            EPOCH: epoch,
            "step": progress.step,
            "best_step": progress.best_step,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "node": ray.get_runtime_context().get_node_id(),
        }
        if not self._uploads:
            self._send(self._sent)
            return
        with tempfile.TemporaryDirectory(dir=self._run.parent) as folder:
            staged = Path(folder) / "run"
            # Hard links: a run is large, and goes on changing.
            ignore = shutil.ignore_patterns(*NOT_UPLOADED)
            shutil.copytree(self._run, staged, copy_function=os.link, ignore=ignore)
            self._send(self._sent, checkpoint=tune.Checkpoint.from_directory(staged))

    def last(self, progress: TrainingProgress) -> dict[str, Any]:
        """Give the report that ends the trial; a run that stood at its end before has had no validation here."""
        best = -math.inf if progress.best_psnr is None else progress.best_psnr
        ended = {METRIC: best, "psnr_slice": best, EPOCH: math.inf, "step": progress.step}
        return ended | {"best_step": progress.best_step} | self._sent | {FINISHED: True}


def train_on_workers(config: TrainConfig, resources: ResourceConfig) -> dict[str, Any]:
    """Train with a group of Ray Train workers, which report through here, and give the last report.

    The group is not started again when a worker dies: the whole trial is, by Ray Tune, which counts its failures.
    """
    run = config.run.out
    sent: dict[str, Any] = {}

    class Forward(TuneReportCallback):
        """Reports to Ray Tune, and keeps the last one."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            sent.update(metrics[0])
            super().after_report(run_context, metrics, checkpoint)

    trainer = TorchTrainer(
        train_as_worker,
        train_loop_config={"config": to_tree(config), "gpus": resources.gpus_per_worker},
        torch_config=TorchConfig(timeout_s=int(config.run.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=resources.workers_per_trial,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
        ),
        run_config=TrainerConfig(
            name=run.name,
            storage_path=str(run.parent.parent / "workers"),
            callbacks=[Forward()],
        ),
    )
    metrics = trainer.fit().metrics or sent
    return dict(metrics)


def train_as_worker(given: dict[str, Any]) -> None:
    """Train as one process of a trial. Collective: ALL workers call it.

    Args:
        given: `config`, a TrainConfig as plain values, and `gpus`, those of each worker.
    """
    config = from_tree(TrainConfig, given["config"], "trial")
    if not given["gpus"]:
        hide_gpus()
    reports = Reports(config.run.out, ray.train.report, uploads=False)
    try:
        progress = fit(config, StopRequest(), reports.validated)
    except FINAL as error:
        if not error.met_by_all:
            raise
        ray.train.report(failure(config.run.out, str(error)))
        return
    ray.train.report(reports.last(progress))
