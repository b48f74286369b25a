"""What became of the points of a sweep, read from Ray's results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.tune.configuration import SweepConfig
from upfield.tune.space import name_of, with_point
from upfield.tune.trial import EPOCH, FAILED, FINISHED, METRIC, point_of

SEED, RUNS = "run.seed", "trials"


@dataclass(frozen=True)
class Trained:
    """One trial."""

    point: Mapping[str, Any]
    """Without the seed where every point has several."""
    seed: int | None
    """Of its run, where every point has several."""
    psnr_slice: float | None
    """Best validation PSNR in dB; None where there is none."""
    status: str
    """`done`, `stopped early`, `failed: ...` or `crashed: ...`."""
    run: str
    """Folder of its run, or its name where that is on a disk of a node."""
    best_step: int | None = None
    """Step of the best validation."""
    step: int = 0
    """Steps it was trained for."""
    processes: int = 1
    """That trained it together."""
    node: str = ""
    """Ray's id of the machine of the first of them."""
    seconds: float = 0.0
    """Time that its last attempt took."""
    curve: tuple[tuple[float, float], ...] = ()
    """(epochs, validation PSNR in dB) of each validation."""
    uploaded: Any = field(default=None, compare=False)
    """Its run as a Ray checkpoint, where it is not in a folder that is seen here."""


@dataclass(frozen=True)
class Tried:
    """One point, trained once or with several seeds."""

    point: Mapping[str, Any]
    """Dotted key -> value."""
    trials: tuple[Trained, ...]
    """The best first."""

    @property
    def scores(self) -> list[float]:
        """Best validation PSNR in dB of each trial that has one."""
        return [trial.psnr_slice for trial in self.trials if trial.psnr_slice is not None]

    @property
    def mean(self) -> float:
        """Mean over seeds, in dB; minus infinity where a trial has none."""
        return float(np.mean(self.scores)) if len(self.scores) == len(self.trials) else -math.inf

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds, in dB."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None

    @property
    def status(self) -> str:
        """What became of its trials."""
        return "; ".join(dict.fromkeys(trial.status for trial in self.trials))


def collect(config: SweepConfig, results: Sequence[Any]) -> list[Tried]:
    """Bring Ray's results to points, the best first.

    Args:
        config: of the sweep.
        results: Ray's, one per trial.
    """
    by_point: dict[str, list[Trained]] = {}
    for result in results:
        trial = read_result(config, result)
        by_point.setdefault(str(sorted(trial.point.items())), []).append(trial)
    tried = [
        Tried(trials[0].point, tuple(sorted(trials, key=lambda trial: -_score(trial)))) for trials in by_point.values()
    ]
    return sorted(tried, key=lambda one: (-one.mean, str(sorted(one.point.items()))))


def read_result(config: SweepConfig, result: Any) -> Trained:
    """Read one of Ray's results."""
    point = point_of(result.config, config.train)
    name = name_of(point)
    seed = int(point.pop(SEED)) if config.seeds > 1 else None
    last = result.metrics or {}
    best = last.get(METRIC)
    score = float(best) if best is not None and math.isfinite(best) else None
    return Trained(
        point,
        seed,
        score,
        status_of(result, last, with_point(config.train, point).run.epochs),
        run_of(config, name),
        last.get("best_step"),
        int(last.get("step", 0)),
        int(last.get("processes", 1)),
        str(last.get("node", "")),
        float(last.get("time_total_s", 0.0)),
        curve_of(log_of(config, result, name)),
        result.checkpoint,
    )


def run_of(config: SweepConfig, name: str) -> str:
    """Give the folder of a run, wherever the sweep lies by now, or its name where it was uploaded."""
    return str(config.out.absolute() / RUNS / name) if config.storage is None else name


def status_of(result: Any, last: Mapping[str, Any], epochs: float) -> str:
    """Say what became of a trial that was to train for so many epochs."""
    if result.error:
        return f"crashed: {last_line(result.error)}"
    if last.get(FAILED):
        return f"failed: {last[FAILED]}"
    # ASHA may stop a trial at the validation that ends it.
    return "done" if last.get(FINISHED) or last.get(EPOCH, 0.0) >= epochs else "stopped early"


def last_line(error: object) -> str:
    """Give the line of a remote traceback that says what happened."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def log_of(config: SweepConfig, result: Any, name: str) -> str:
    """Read the log of a trial's run, from its folder or from what it uploaded; Ray's own begins anew at a restart."""
    try:
        if config.storage is None:
            return (Path(run_of(config, name)) / LOG).read_text(encoding="utf-8")
        if result.checkpoint is None:
            return ""
        with result.checkpoint.filesystem.open_input_file(f"{result.checkpoint.path}/{LOG}") as file:
            return file.readall().decode()
    except FileNotFoundError:
        return ""


def curve_of(log: str) -> tuple[tuple[float, float], ...]:
    """Give a run's validations: (epochs, PSNR in dB)."""
    return tuple(
        (line["epoch"], line["psnr_slice"])
        for line in parse_log(log)
        if line["event"] == "validation" and line.get("psnr_slice")
    )


def _score(trial: Trained) -> float:
    return -math.inf if trial.psnr_slice is None else trial.psnr_slice


def spell_score(one: Tried) -> str:
    """Spell a point's mean over seeds, and their spread."""
    if not math.isfinite(one.mean):
        return "-"
    spread = "" if one.spread is None else f" +- {one.spread:.2f} ({len(one.trials)} seeds)"
    return f"{one.mean:.2f}{spread}"
