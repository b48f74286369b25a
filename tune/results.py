"""What a sweep leaves: a row per point, a row per trial, the best run, a report, and the table at its end."""

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
from upfield.common.tables import terminal_width, text_table
from upfield.tune.outcomes import SEED, Trained, Tried, spell_score
from upfield.tune.page import write_sweep_report
from upfield.tune.space import spell

BEST = "best"


def write_results(out: Path, tried: Sequence[Tried]) -> None:
    """Write results.csv, trials.csv and report.html, put the best run at `best`, and print the table.

    Raises:
        RunError: no trial has a validation PSNR.
    """
    write_text(out / "results.csv", to_csv(result_rows(tried)))
    write_text(out / "trials.csv", to_csv(trial_rows(tried)))
    # A point of which a seed failed stands last; it is the best where there is no other.
    scored = [trial for one in tried for trial in one.trials if trial.psnr_slice is not None]
    if not scored:
        raise RunError(
            f"{out}: expected a trial to reach a validation, found none among all {len(tried)} points; the first: "
            f"{tried[0].status}"
        )
    best = scored[0]
    place_best(out, best)
    write_sweep_report(out / "report.html", tried)
    print(table(tried))
    print(f"{out / BEST}: {best.psnr_slice:.2f} dB; export it with: upfield export {out / BEST} --out model.onnx")
    print(out / "report.html", flush=True)


def place_best(out: Path, best: Trained) -> None:
    """Point `best` at the best run, or bring it there from where it was uploaded."""
    if best.uploaded is None:
        point_symlink(out / BEST, str(Path(best.run).relative_to(out)))
        return
    fetched = out / ".fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    best.uploaded.to_directory(fetched)
    replace_folder(fetched, out / BEST)


def result_rows(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Give a row per point, the best first."""
    return [
        {
            "rank": number,
            **one.point,
            "psnr_slice": round(one.mean, 4) if math.isfinite(one.mean) else "",
            "psnr_slice_std": "" if one.spread is None else round(one.spread, 4),
            "seeds": len(one.trials),
            "best_step": one.trials[0].best_step,
            "status": one.status,
            "seconds": round(sum(trial.seconds for trial in one.trials), 1),
            "run": one.trials[0].run,
        }
        for number, one in enumerate(tried, start=1)
    ]


def trial_rows(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """Give a row per trial."""
    return [
        {
            **one.point,
            **({} if trial.seed is None else {SEED: trial.seed}),
            "psnr_slice": "" if trial.psnr_slice is None else round(trial.psnr_slice, 4),
            "best_step": trial.best_step,
            "step": trial.step,
            "processes": trial.processes,
            "node": trial.node,
            "status": trial.status,
            "seconds": round(trial.seconds, 1),
            "run": trial.run,
        }
        for one in tried
        for trial in one.trials
    ]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Spell rows, at least one, as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def table(tried: Sequence[Tried]) -> str:
    """Give the table that ends the command."""
    keys = list(tried[0].point)
    header = ["", *keys, "validation PSNR (dB)", "status"]
    rows = [
        [str(number), *(spell(one.point[key]) for key in keys), spell_score(one), one.status]
        for number, one in enumerate(tried, start=1)
    ]
    return text_table(header, rows, wrapped=("status",), width=terminal_width(sys.stdout))
