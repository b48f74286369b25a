"""One trial: a point of the space, trained by the same `fit` as `upfield train` and reported to Ray Tune."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
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
from upfield.distributed.configuration import RunConfig, TrainConfig, TrainSettings
from upfield.distributed.loop import fit
from upfield.tune.configuration import ResourceConfig
from upfield.tune.space import apply_point, name_run

METRIC, EPOCH, FAILED, FINISHED, POINT = "best_psnr_slice", "epoch", "failed", "finished", "point"
REPEAT = "__trial_index__"  # The key under which Ray's Repeater passes the number of a repetition.
# These errors would recur at every further attempt.
PERMANENT_ERRORS = (InputError, DivergedError)
# NFS keeps the locks of a dead node for 90 s.
PATIENCE_S = 180.0
NOT_UPLOADED = ("last", LOCK, "tensorboard", "*.tmp*")


@dataclass(frozen=True)
class TrialSetup:
    """Settings that all trials of a sweep share."""

    base: TrainSettings
    """The training configuration in which each point replaces values."""
    out: str
    """Folder for the runs, the same on all nodes; empty if each node trains on its own disk."""
    resources: ResourceConfig
    """Resources of each trial; the number of GPUs is set."""


def read_point(ray_config: Mapping[str, Any], base: TrainSettings) -> dict[str, Any]:
    """Return the point of a trial from the configuration that Ray passes to it."""
    if POINT in ray_config:
        return dict(ray_config[POINT])
    point = {key: value for key, value in ray_config.items() if key != REPEAT}
    return point | ({"run.seed": base.run.seed + ray_config[REPEAT]} if REPEAT in ray_config else {})


def run_trial(ray_config: dict[str, Any], setup: TrialSetup) -> dict[str, Any]:
    """Train a point, from its last checkpoint if there is one, and return its last report.

    An error that would recur at every attempt ends the trial as failed. Any other error is raised, and Ray retries the
    trial.

    Args:
        ray_config: the configuration that Ray passes to the trial.
        setup: settings that all trials share.
    """
    point = read_point(ray_config, setup.base)
    settings = apply_point(setup.base, point)
    with open_run_folder(setup.out, name_run(point)) as run:
        config = train_config(settings, run)
        wait_until_free(run)
        if setup.resources.workers_per_trial > 1:
            return train_on_workers(config, setup.resources)
        if not setup.resources.gpus_per_worker:
            hide_gpus()
        reporter = TrialReporter(run, tune.report, uploads=not setup.out)
        try:
            progress = fit(config, StopRequest(), reporter.report_validation, measure_whole=False)
        except PERMANENT_ERRORS as error:
            return failure_report(str(error))
        return reporter.final_report(progress)


def train_config(settings: TrainSettings, run: Path) -> TrainConfig:
    """Return the training configuration of a trial: one process, which resumes from its own folder."""
    shared = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in ("run", "processes")}
    of_run = {f.name: getattr(settings.run, f.name) for f in fields(settings.run) if f.name not in ("out", "resume")}
    return TrainConfig(**shared, run=RunConfig(**of_run, out=run, resume="auto"))


def hide_gpus() -> None:
    """Make this process train on the CPU, because Ray does not hide GPUs from processes that reserved none."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@contextmanager
def open_run_folder(out: str, name: str) -> Iterator[Path]:
    """Yield the folder of a trial's run: below `out`, or a temporary folder with the trial's last upload, if any."""
    if out:
        yield Path(out) / name
        return
    with tempfile.TemporaryDirectory(prefix="upfield-trial-") as folder:
        run = Path(folder) / name
        if uploaded := tune.get_checkpoint():
            uploaded.to_directory(run)
        yield run


def wait_until_free(run: Path) -> None:
    """Wait until an earlier process of this trial, whose driver or node was killed, has released the run.

    Raises:
        RunError: the earlier process still locks the run after PATIENCE_S.
    """
    deadline = time.monotonic() + PATIENCE_S
    while is_held(run):
        if time.monotonic() > deadline:
            raise RunError(
                f"{run}: an earlier process of this trial still locks the run after {PATIENCE_S:g} s. End that "
                "process, and start the same sweep again."
            )
        time.sleep(1)


def failure_report(problem: str) -> dict[str, Any]:
    """Return the report of a trial that cannot be trained."""
    return {METRIC: -math.inf, "psnr_slice": -math.inf, EPOCH: 0.0, "step": 0, FAILED: problem}


class TrialReporter:
    """Reports the validations of one trial to Ray."""

    def __init__(self, run: Path, send: Callable[..., None], uploads: bool) -> None:
        """Store the run's folder and the function that sends reports.

        Args:
            run: folder of the trial's run.
            send: `tune.report`, or `ray.train.report` in a worker.
            uploads: whether to upload the run with each report.
        """
        self._run, self._send, self._uploads = run, send, uploads
        self._last: dict[str, Any] = {}

    def report_validation(self, progress: TrainingProgress, epoch: float, figures: Mapping[str, float]) -> None:
        """Report a validation to Ray, and upload the run if the sweep uses a store."""
        self._last = {
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
            self._send(self._last)
            return
        with tempfile.TemporaryDirectory(dir=self._run.parent) as folder:
            staged = Path(folder) / "run"
            # Hard links, because a run is large and changes while it is uploaded.
            ignore = shutil.ignore_patterns(*NOT_UPLOADED)
            shutil.copytree(self._run, staged, copy_function=os.link, ignore=ignore)
            self._send(self._last, checkpoint=tune.Checkpoint.from_directory(staged))

    def final_report(self, progress: TrainingProgress) -> dict[str, Any]:
        """Return the last report of the trial. The run may have been complete before this process started."""
        best = -math.inf if progress.best_psnr is None else progress.best_psnr
        ended = {METRIC: best, "psnr_slice": best, EPOCH: math.inf, "step": progress.step}
        return ended | {"best_step": progress.best_step} | self._last | {FINISHED: True}


def train_on_workers(config: TrainConfig, resources: ResourceConfig) -> dict[str, Any]:
    """Train with a group of Ray Train workers, forward their reports, and return the last one.

    If a worker dies, Ray Train does not restart the group. Ray Tune starts the whole trial again and counts a failure.
    """
    run = config.run.out
    last: dict[str, Any] = {}

    class ReportForwarder(TuneReportCallback):
        """Forwards reports to Ray Tune and keeps the last one."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            last.update(metrics[0])
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
            callbacks=[ReportForwarder()],
        ),
    )
    metrics = trainer.fit().metrics or last
    return dict(metrics)


def train_as_worker(loop_config: dict[str, Any]) -> None:
    """Train as one process of a trial. Collective: ALL workers call it.

    Args:
        loop_config: `config`, a TrainConfig as plain values, and `gpus`, the number of GPUs per worker.
    """
    config = from_tree(TrainConfig, loop_config["config"], "trial")
    if not loop_config["gpus"]:
        hide_gpus()
    reporter = TrialReporter(config.run.out, ray.train.report, uploads=False)
    try:
        progress = fit(config, StopRequest(), reporter.report_validation, measure_whole=False)
    except PERMANENT_ERRORS as error:
        if not error.met_by_all:
            raise
        ray.train.report(failure_report(str(error)))
        return
    ray.train.report(reporter.final_report(progress))
