"""Results of a sweep: a CSV row per point and per trial, the best run, the report, and the printed table."""

import csv
import io
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upfield.common.errors import RunError
from upfield.common.files import point_symlink, replace_folder, write_text
from upfield.common.progress import say
from upfield.common.tables import terminal_width, text_table
from upfield.distributed.checkpoint import read_best_record
from upfield.model.baseline import describe_gain, warn_if_below_cubic
from upfield.tune.outcomes import SEED, PointOutcome, TrialOutcome, table_of_points
from upfield.tune.sweep_report import write_sweep_report

BEST = "best"


def write_results(out: Path, outcomes: Sequence[PointOutcome]) -> None:
    """Write results.csv, trials.csv and report.html, place the best run at `best`, and print the table.

    Args:
        out: folder of the sweep.
        outcomes: the points, best first.

    Raises:
        RunError: no trial has a validation PSNR.
    """
    write_text(out / "results.csv", to_csv(result_rows(outcomes)))
    write_text(out / "trials.csv", to_csv(trial_rows(outcomes)))
    # A point with a failed seed ranks last, but it is the best point if no other has a result.
    scored = [trial for outcome in outcomes for trial in outcome.trials if trial.psnr_slice is not None]
    if not scored:
        raise RunError(
            f"{out}: no trial of the {len(outcomes)} points reached a validation. The first point: {outcomes[0].status}"
        )
    best = scored[0]
    place_best(out, best)
    write_sweep_report(out / "report.html", outcomes)
    print(results_table(outcomes))
    gain = describe_gain({"psnr_slice": best.psnr_slice, "cubic_psnr_slice": best.cubic_psnr_slice})
    print(f"{out / BEST}: {best.psnr_slice:z.2f} dB{gain and f', {gain}'}")
    print(f"Export it with: upfield export {out / BEST} --out model.onnx")
    print(out / "report.html", flush=True)
    record = read_best_record(out / BEST)
    if record and (warning := warn_if_below_cubic(str(out / BEST), record["step"], record["validation"])):
        say(warning)


def place_best(out: Path, best: TrialOutcome) -> None:
    """Point the symbolic link `best` at the best run, or download the run to `best` if it was uploaded."""
    if best.uploaded is None:
        point_symlink(out / BEST, str(Path(best.run).relative_to(out)))
        return
    download = out / ".fetched"
    shutil.rmtree(download, ignore_errors=True)
    best.uploaded.to_directory(download)
    replace_folder(download, out / BEST)


def result_rows(outcomes: Sequence[PointOutcome]) -> list[dict[str, Any]]:
    """Return a row per point, best first."""
    return [
        {
            "rank": rank,
            **outcome.point,
            "psnr_slice": round(outcome.mean, 4) + 0.0 if math.isfinite(outcome.mean) else "",
            "psnr_slice_std": "" if outcome.spread is None else round(outcome.spread, 4),
            "gain_over_cubic": "" if outcome.gain is None else round(outcome.gain, 4) + 0.0,
            "seeds": len(outcome.trials),
            "best_step": outcome.trials[0].best_step,
            "status": outcome.status,
            "seconds": round(sum(trial.seconds for trial in outcome.trials), 1),
            "run": outcome.trials[0].run,
        }
        for rank, outcome in enumerate(outcomes, start=1)
    ]


def trial_rows(outcomes: Sequence[PointOutcome]) -> list[dict[str, Any]]:
    """Return a row per trial."""
    return [
        {
            **outcome.point,
            **({} if trial.seed is None else {SEED: trial.seed}),
            "psnr_slice": "" if trial.psnr_slice is None else round(trial.psnr_slice, 4) + 0.0,
            "cubic_psnr_slice": "" if trial.cubic_psnr_slice is None else round(trial.cubic_psnr_slice, 4) + 0.0,
            "best_step": trial.best_step,
            "step": trial.step,
            "processes": trial.processes,
            "node": trial.node,
            "status": trial.status,
            "seconds": round(trial.seconds, 1),
            "run": trial.run,
        }
        for outcome in outcomes
        for trial in outcome.trials
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format one or more rows as CSV; the first row's keys are the columns."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def results_table(outcomes: Sequence[PointOutcome]) -> str:
    """Return the table that the command prints last."""
    header, rows = table_of_points(outcomes)
    return text_table(header, rows, wrapped=("status",), width=terminal_width(sys.stdout))
