"""Outcomes of the points and trials of a sweep, read from Ray's results."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.tune.configuration import SweepConfig
from upfield.tune.space import apply_point, format_value, name_run
from upfield.tune.trial import EPOCH, FAILED, FINISHED, METRIC, read_point

SEED, RUNS = "run.seed", "trials"


@dataclass(frozen=True)
class TrialOutcome:
    """The scores, status and run folder of one trial."""

    point: Mapping[str, Any]
    """Dotted key -> value, without the seed if every point has several."""
    seed: int | None
    """Seed of the run if every point has several; None otherwise."""
    psnr_slice: float | None
    """Best validation PSNR in dB; None if no validation had a finite PSNR."""
    status: str
    """`done`, `stopped early`, `failed: ...` or `crashed: ...`."""
    run: str
    """Folder of the run; only its name if the run was uploaded to a store."""
    cubic_psnr_slice: float | None = None
    """PSNR of cubic interpolation in dB on the slices of the best validation; None if the log does not have it."""
    best_step: int | None = None
    """Step of the best validation."""
    step: int = 0
    """Last step in the run's log, whichever attempt trained it."""
    processes: int = 1
    """Number of processes that trained the run together."""
    node: str = ""
    """Ray's id of the node where the first process ran."""
    seconds: float = 0.0
    """Time for which the run was trained and validated, summed over its attempts, without work that was lost."""
    curve: tuple[tuple[float, float], ...] = ()
    """(epoch, validation PSNR in dB) of each validation."""
    uploaded: Any = field(default=None, compare=False)
    """The run as a Ray checkpoint, if it was uploaded to a store."""

    @property
    def gain(self) -> float | None:
        """Gain over cubic interpolation in dB; None if either PSNR is missing."""
        if self.psnr_slice is None or self.cubic_psnr_slice is None:
            return None
        return self.psnr_slice - self.cubic_psnr_slice


@dataclass(frozen=True)
class PointOutcome:
    """The trials of one point, which was trained with one or several seeds."""

    point: Mapping[str, Any]
    """Dotted key -> value."""
    trials: tuple[TrialOutcome, ...]
    """One per seed, best first."""

    @property
    def scores(self) -> list[float]:
        """Best validation PSNR in dB of each trial that has one."""
        return [trial.psnr_slice for trial in self.trials if trial.psnr_slice is not None]

    @property
    def mean(self) -> float:
        """Mean over seeds, in dB; minus infinity if a trial has no score."""
        return float(np.mean(self.scores)) if len(self.scores) == len(self.trials) else -math.inf

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds, in dB; None for fewer than two scores."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None

    @property
    def gain(self) -> float | None:
        """Mean gain over cubic interpolation over seeds, in dB; None if a trial has none."""
        gains = [trial.gain for trial in self.trials if trial.gain is not None]
        return float(np.mean(gains)) if len(gains) == len(self.trials) else None

    @property
    def status(self) -> str:
        """The status of each trial, without repeats, as one text."""
        return "; ".join(dict.fromkeys(trial.status for trial in self.trials))


def read_outcomes(config: SweepConfig, results: Sequence[Any]) -> list[PointOutcome]:
    """Group Ray's results by point and return the outcomes, best first.

    Args:
        config: the sweep.
        results: Ray's results, one per trial.
    """
    by_point: dict[str, list[TrialOutcome]] = {}
    for result in results:
        trial = read_trial(config, result)
        by_point.setdefault(str(sorted(trial.point.items())), []).append(trial)
    outcomes = [
        PointOutcome(trials[0].point, tuple(sorted(trials, key=lambda trial: -_score(trial))))
        for trials in by_point.values()
    ]
    return sorted(outcomes, key=lambda outcome: (-outcome.mean, str(sorted(outcome.point.items()))))


def read_trial(config: SweepConfig, result: Any) -> TrialOutcome:
    """Read the outcome of a trial from Ray's result and the run's log."""
    point = read_point(result.config, config.train)
    name = name_run(point)
    seed = int(point.pop(SEED)) if config.seeds > 1 else None
    last = result.metrics or {}
    # Ray's own figures start again at each attempt.
    lines = parse_log(read_log(config, result, name))
    best = last.get(METRIC)
    best_step = last.get("best_step")
    return TrialOutcome(
        point,
        seed,
        psnr_slice=float(best) if best is not None and math.isfinite(best) else None,
        status=describe_status(result, last, apply_point(config.train, point).run.epochs),
        run=locate_run(config, name),
        cubic_psnr_slice=read_baseline(lines, best_step),
        best_step=best_step,
        step=max([line["step"] for line in lines], default=int(last.get("step", 0))),
        processes=int(last.get("processes", 1)),
        node=str(last.get("node", "")),
        seconds=max([float(line["seconds"]) for line in lines], default=0.0),
        curve=read_curve(lines),
        uploaded=result.checkpoint,
    )


def locate_run(config: SweepConfig, name: str) -> str:
    """Return the folder of a run, even if the sweep has been moved; only the run's name if it was uploaded."""
    return str(config.out.absolute() / RUNS / name) if config.storage is None else name


def describe_status(result: Any, last: Mapping[str, Any], epochs: float) -> str:
    """Derive a trial's status from its result, its last report, and its configured number of epochs."""
    if result.error:
        return f"crashed: {last_line(result.error)}"
    if last.get(FAILED):
        return f"failed: {last[FAILED]}"
    # ASHA may stop a trial at its very last validation.
    return "done" if last.get(FINISHED) or last.get(EPOCH, 0.0) >= epochs else "stopped early"


def last_line(error: object) -> str:
    """Return the last line of a remote traceback, which names the error."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def read_log(config: SweepConfig, result: Any, name: str) -> str:
    """Read the log of a trial's run, from its folder or its upload; return an empty string if there is none.

    Ray's own record of a trial starts again at every restart, so it cannot replace the log.
    """
    try:
        if config.storage is None:
            return (Path(locate_run(config, name)) / LOG).read_text(encoding="utf-8")
        if result.checkpoint is None:
            return ""
        with result.checkpoint.filesystem.open_input_file(f"{result.checkpoint.path}/{LOG}") as file:
            return file.readall().decode()
    except FileNotFoundError:
        return ""


def read_curve(lines: Iterable[Mapping[str, Any]]) -> tuple[tuple[float, float], ...]:
    """Return (epoch, PSNR in dB) of each validation among the lines of a run's log."""
    return tuple(
        (line["epoch"], line["psnr_slice"])
        for line in lines
        if line["event"] == "validation" and line.get("psnr_slice")
    )


def read_baseline(lines: Iterable[Mapping[str, Any]], best_step: int | None) -> float | None:
    """Return the PSNR of cubic interpolation, in dB, in the validation at `best_step`, or else in the last validation.

    Validations of one run may be over different slices, so each has its own value for cubic interpolation.
    """
    values = {
        line["step"]: float(line["cubic_psnr_slice"])
        for line in lines
        if line["event"] == "validation" and line.get("cubic_psnr_slice")
    }
    value = values.get(best_step or 0, next(reversed(values.values()), None))
    return value if value is not None and math.isfinite(value) else None


def baselines(outcomes: Iterable[PointOutcome]) -> list[float]:
    """Return the different PSNRs of cubic interpolation in dB, lowest first; one unless validation sets differ."""
    values = {trial.cubic_psnr_slice for outcome in outcomes for trial in outcome.trials}
    return sorted({round(value, 2) for value in values if value is not None})


def _score(trial: TrialOutcome) -> float:
    return -math.inf if trial.psnr_slice is None else trial.psnr_slice


def format_score(outcome: PointOutcome) -> str:
    """Format a point's mean score over its seeds, in dB, with the standard deviation."""
    if not math.isfinite(outcome.mean):
        return "-"
    spread = "" if outcome.spread is None else f" +- {outcome.spread:.2f} ({len(outcome.trials)} seeds)"
    return f"{outcome.mean:z.2f}{spread}"


def format_gain(gain: float | None) -> str:
    """Format a gain over cubic interpolation in dB; `-` if there is none."""
    return "-" if gain is None or not math.isfinite(gain) else f"{gain:+z.2f}"


def table_of_points(outcomes: Sequence[PointOutcome]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of points, with a row for cubic interpolation at its rank.

    Args:
        outcomes: the points, best first.
    """
    keys = list(outcomes[0].point)
    # Phones show only the first columns without scrolling.
    header = ["rank", "validation PSNR (dB)", "gain over cubic (dB)", *keys, "status"]
    rows = [
        [
            str(rank),
            format_score(outcome),
            format_gain(outcome.gain),
            *(format_value(outcome.point[key]) for key in keys),
            outcome.status,
        ]
        for rank, outcome in enumerate(outcomes, start=1)
    ]
    if cubic := baselines(outcomes):
        text = " to ".join(dict.fromkeys(f"{value:z.2f}" for value in (cubic[0], cubic[-1])))
        better = sum(outcome.mean > cubic[-1] for outcome in outcomes)
        rows.insert(better, ["cubic", text, "", *("" for _ in keys), "interpolation, not trained"])
    return header, rows
