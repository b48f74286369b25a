"""Checkpoints that are complete or absent, and the best model."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from upfield.distributed.configuration import TrainConfig
from upfield.model.amir import Amir
from upfield.model.weights import CONFIG, METRICS, MODEL, read_weights, save_model
from upfield.sharding.atomic import atomic_folder, point_symlink, replace_folder, write_json, write_text
from upfield.sharding.command import to_yaml
from upfield.sharding.errors import InputError

OPTIMIZER, PROGRESS = "optimizer.pt", "progress.json"


@dataclass
class Progress:
    """Where a run stands; with the weights and the optimizer all that resuming needs."""

    step: int = 0
    """Optimizer steps done."""
    best_psnr: float | None = None
    """Best validation PSNR so far, in dB."""
    best_step: int | None = None
    """The step it was measured at."""
    data_sha256: str = ""
    """The shard set that the order belongs to."""
    batch_size: int = 0
    """The global batch that the steps were counted in."""
    seed: int = 0
    """The seed of the order."""
    window_shards: int = 0
    """Shards that the order mixes."""


def save_checkpoint(out: Path, model: Amir, optimizer: Optimizer, progress: Progress, keep: int) -> Path:
    """Write a checkpoint, point `last` at it, and remove the oldest. One rank calls it.

    Args:
        out: folder of the run.
        model: the unwrapped network.
        optimizer: its optimizer.
        progress: where the run stands.
        keep: checkpoints to keep.
    """
    folder = out / "checkpoints" / f"step-{progress.step:08d}"
    if not folder.exists():  # A signal just after a checkpoint asks for the same one again.
        with atomic_folder(folder) as temporary:
            save_model(model, temporary / MODEL)
            torch.save(optimizer.state_dict(), temporary / OPTIMIZER)
            write_json(temporary / PROGRESS, asdict(progress))
    point_symlink(out / "checkpoints" / "last", folder.name)
    for old in sorted((out / "checkpoints").glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def find_checkpoint(out: Path, resume: str) -> Path | None:
    """Give the checkpoint to go on from, or None to start anew.

    Args:
        out: folder of the run.
        resume: `auto`, `none`, or a checkpoint's path.

    Raises:
        InputError: the named checkpoint is not one.
    """
    if resume == "none":
        return None
    if resume == "auto":
        # Folders have their names only once they are complete, so the newest one will do.
        return max((out / "checkpoints").glob("step-*"), default=None)
    folder = Path(resume)
    if missing := [name for name in (MODEL, OPTIMIZER, PROGRESS) if not (folder / name).is_file()]:
        raise InputError(
            f"{folder}: expected a checkpoint, found no {missing[0]} in it; name another with --run.resume"
        )
    return folder.resolve()


def clear_leftovers(out: Path, checkpoint: Path | None) -> None:
    """Remove what the run to come will not continue. One rank calls it.

    That is what a killed process left half-written, and every checkpoint and best model after the one resumed from: a
    later start would mistake them for this run's.

    Args:
        out: folder of the run.
        checkpoint: the checkpoint resumed from; None starts anew.
    """
    folder = out / "checkpoints"
    own = checkpoint is not None and checkpoint.parent.resolve() == folder.resolve()
    last_step = _step_of(checkpoint) if own and checkpoint else -1
    stale = [path for path in folder.glob("step-*") if _step_of(path) > last_step]
    if (read_best_step(out) or -1) > last_step:
        stale.append(out / "best")
    for path in [*folder.glob(".tmp-*"), *stale]:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    if (folder / "last").is_symlink() and not (folder / "last").exists():
        (folder / "last").unlink()


def read_best_step(out: Path) -> int | None:
    """Give the step that a run's best model was measured at, or None where there is none."""
    if not (out / "best" / METRICS).is_file():
        return None
    return json.loads((out / "best" / METRICS).read_text(encoding="utf-8"))["step"]


def _step_of(folder: Path) -> int:
    return int(folder.resolve().name.rsplit("-", 1)[1])


def load_checkpoint(folder: Path, model: Amir, optimizer: Optimizer) -> Progress:
    """Load a checkpoint into an unwrapped network and its optimizer, and give where it stood. Every rank calls it.

    Raises:
        InputError: the weights do not fit the network.
    """
    try:
        model.load_state_dict(read_weights(folder / MODEL), strict=True)
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: expected weights that fit the configured model: {error}") from error
    return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


def save_best(out: Path, model: Amir, config: TrainConfig, metrics: dict[str, Any]) -> None:
    """Write what evaluation and export need to `out/best`, replacing the previous best in one step. One rank calls it.

    Args:
        out: folder of the run.
        model: the unwrapped network.
        config: the run's configuration.
        metrics: what was measured, with the data's description.
    """
    folder = out / "checkpoints" / ".tmp-best"
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        save_model(model, temporary / MODEL)
        write_text(temporary / CONFIG, to_yaml(config))
        write_json(temporary / METRICS, metrics)
    replace_folder(folder, out / "best")
