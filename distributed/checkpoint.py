"""Checkpoints, each of which is complete or absent, and the best model.

Checkpoints hold no generator state: gating noise and augmentation are pure functions of (seed, step or epoch, sample),
and nothing else is random.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from upfield.common.command import to_yaml
from upfield.common.errors import InputError
from upfield.common.files import atomic_folder, hash_file, point_symlink, replace_folder, write_json, write_text
from upfield.common.progress import say
from upfield.distributed.configuration import TrainConfig
from upfield.model.amir import AmirConfig
from upfield.model.weights import CONFIG, METRICS, MODEL, save_weights

AVERAGE, OPTIMIZER, PROGRESS, HASHES = "average.safetensors", "optimizer.pt", "progress.json", "sha256.json"
# Key of the figures by which the best model was chosen, in the record of the best model.
CHOSEN_BY = "chosen_by"
CHECKPOINT_NAME = re.compile(r"step-\d{8,}")


@dataclass
class TrainingProgress:
    """How far a run has come. Together with the learner's state, this is everything that is needed to resume a run."""

    step: int = 0
    """Number of global batches consumed."""
    skipped: int = 0
    """Number of these batches that were skipped because the loss or the gradient was not finite."""
    overflows: int = 0
    """Number of these batches without a weight update because a gradient overflowed in fp16, after which the loss scale
    was lowered."""
    validated_step: int = 0
    """Step after which the weights were last validated."""
    best_psnr: float | None = None
    """Best validation PSNR so far, in dB."""
    best_step: int | None = None
    """Step at which `best_psnr` was measured."""
    best_slices: int = 0
    """Number of slices on which `best_psnr` was measured."""
    data_sha256: str = ""
    """Data hash of the shard set, which determines the sample order."""
    batch_size: int = 0
    """Number of samples in the global batch of each step."""
    seed: int = 0
    """Seed of the sample order."""
    window_shards: int = 0
    """Number of shards whose samples are shuffled together."""
    groups: int = 1
    """Number of groups to which the shards are dealt. Earlier versions had one."""
    mix: dict[str, Any] = field(default_factory=dict)
    """Shares of classes of samples, and what has these shares; empty without a mix."""
    reader: str = "exact"
    """Reader of the samples. Earlier versions had one."""
    hardware: str = ""
    """Number of processes and kind of device that trained last, and on a GPU the precision and the crop; empty in
    checkpoints of earlier versions."""
    activation_checkpointing: str = ""
    """Activation checkpointing that was used on this hardware."""
    micro_batch: int = 0
    """Number of slices per forward pass that was used on this hardware."""
    pending: dict[str, float] = field(default_factory=dict)
    """Sum of each loss term since the last log line."""
    pending_steps: int = 0
    """Number of steps in these sums."""
    threads: int = 0
    """Number of threads of each process on a CPU. Another number would add numbers in another order."""
    most_threads: int = 0
    """Number of threads of each process if nothing else ran on the machine."""

    @property
    def updates(self) -> int:
        """Number of steps that updated the weights."""
        return self.step - self.skipped - self.overflows

    def add_terms(self, terms: Mapping[str, float]) -> None:
        """Add the loss terms of a step, which are means over all ranks, to the sums for the next log line."""
        for name, value in terms.items():
            self.pending[name] = self.pending.get(name, 0.0) + value
        self.pending_steps += 1

    def threads_for(self, most_threads: int) -> int:
        """Return the run's number of threads, or 0 if it has none for so many cores and processes."""
        return self.threads if self.most_threads == most_threads else 0


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts."""

    checkpoint: Path | None
    """The checkpoint to resume from, if any."""
    progress: TrainingProgress
    """The progress saved in this checkpoint, or the progress of a new run."""
    existing: tuple[str, ...]
    """Names of the checkpoints in the run's folder when the start was determined."""

    def is_current(self, out: Path) -> bool:
        """Return whether the run's folder still holds the checkpoints listed in `existing`, and no others."""
        return tuple(path.name for path in list_checkpoints(out)) == self.existing


def save_checkpoint(out: Path, sizes: AmirConfig, state: dict[str, Any], progress: TrainingProgress, keep: int) -> None:
    """Write a checkpoint, point the symlink `last` at it, and remove the oldest checkpoints. Only one rank calls it.

    Args:
        out: folder of the run.
        sizes: sizes of the network.
        state: state of the learner.
        progress: progress of the run.
        keep: number of checkpoints to keep.

    Raises:
        OSError: the checkpoint could not be written; earlier checkpoints are intact.
    """
    folder = checkpoint_folder(out, progress.step)
    with atomic_folder(folder) as temporary:
        save_weights(state["weights"], sizes, temporary / MODEL)
        if state["average"]:
            save_file(state["average"], temporary / AVERAGE)
        torch.save({name: state[name] for name in ("optimizer", "scaler")}, temporary / OPTIMIZER)
        write_json(temporary / HASHES, {file.name: hash_file(file) for file in sorted(temporary.iterdir())})
        write_json(temporary / PROGRESS, asdict(progress))
    point_symlink(out / "checkpoints" / "last", folder.name)
    for old in list_checkpoints(out)[:-keep]:
        shutil.rmtree(old)


def save_progress(out: Path, progress: TrainingProgress) -> None:
    """Update the progress in the checkpoint of this step after a validation. Only one rank calls it."""
    write_json(checkpoint_folder(out, progress.step) / PROGRESS, asdict(progress))


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint that a run saves at a step."""
    return out / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(out: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, oldest first."""
    return sorted(path for path in (out / "checkpoints").glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name))


def find_resume_point(out: Path, resume: str, fresh: TrainingProgress, keep_groups: bool = False) -> ResumePoint:
    """Find where a run starts.

    Args:
        out: folder of the run.
        resume: `auto`, `none`, or a checkpoint's path.
        fresh: progress of a new run with this data and configuration.
        keep_groups: whether to take the number of groups from the checkpoint, because the configuration has none.

    Raises:
        InputError: the checkpoint is damaged, or was saved with another sample order.
    """
    existing = tuple(path.name for path in list_checkpoints(out))
    checkpoint = find_checkpoint(out, resume)
    if checkpoint is None:
        return ResumePoint(None, fresh, existing)
    progress = read_progress(checkpoint)
    refuse_other_order(checkpoint, progress, replace(fresh, groups=progress.groups) if keep_groups else fresh)
    # The best model may have been saved after the checkpoint, and only a better model replaces it.
    best = read_best_score(out) if is_own(out, checkpoint) else None
    progress.best_psnr, progress.best_step, progress.best_slices = best or (None, None, 0)
    return ResumePoint(checkpoint, progress, existing)


def refuse_other_order(checkpoint: Path, saved: TrainingProgress, fresh: TrainingProgress) -> None:
    """Check that a checkpoint was saved with the sample order of this run.

    Raises:
        InputError: the checkpoint was saved with another sample order.
    """
    for name in ("data_sha256", "batch_size", "seed", "window_shards", "groups", "mix", "reader"):
        theirs, ours = getattr(saved, name), getattr(fresh, name)
        if theirs != ours:
            theirs, ours = ("none" if value == {} else value for value in (theirs, ours))
            raise InputError(
                f"{checkpoint}: this checkpoint was trained with {name} {theirs}, but the run has {ours}, which "
                "changes the sample order. Choose another --run.out, and use --model.init to start from these weights."
            )


def find_checkpoint(out: Path, resume: str) -> Path | None:
    """Return the checkpoint to resume from, or None to start from the beginning.

    Args:
        out: folder of the run.
        resume: `auto`, `none`, or a checkpoint's path.

    Raises:
        InputError: `resume` names no checkpoint or a damaged one, or all checkpoints of the run are damaged.
    """
    if resume == "none":
        return None
    if resume != "auto":
        if damage := find_damage(Path(resume)):
            known = ", ".join(map(str, list_checkpoints(Path(resume)))) or "auto, none, or a checkpoint's folder"
            raise InputError(f"{resume}: cannot resume from this path because {damage}. Set --run.resume to {known}.")
        return Path(resume).resolve()
    folders = list_checkpoints(out)
    for folder in reversed(folders):
        if not (damage := find_damage(folder)):
            return folder
        say(f"warning: {folder}: {damage}; trying an older checkpoint")
    if folders:
        raise InputError(
            f"{out}: all {len(folders)} checkpoints are damaged. Choose another --run.out, and start from the best "
            f"model so far, if there is one, with --model.init {out / 'best' / MODEL}."
        )
    return None


def find_damage(folder: Path) -> str:
    """Return a description of the damage to a checkpoint, or an empty string if the checkpoint is intact."""
    if missing := [name for name in (MODEL, OPTIMIZER, PROGRESS, HASHES) if not (folder / name).is_file()]:
        return f"{missing[0]} is missing"
    try:
        read_progress(folder)
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        # The progress has no checksum, because each validation rewrites it.
        changed = [name for name, sha256 in hashes.items() if name != PROGRESS and hash_file(folder / name) != sha256]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return f"the checksum of {changed[0]} is wrong" if changed else ""


def read_progress(folder: Path) -> TrainingProgress:
    """Read the progress saved in a checkpoint.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not JSON.
        TypeError: the file has fields that this version does not know.
    """
    return TrainingProgress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


def clear_leftovers(out: Path, checkpoint: Path | None, step: int) -> None:
    """Remove files of earlier jobs that this job does not continue from. Only one rank calls it.

    This removes the half-written files of a killed process. It also removes every checkpoint after the one to resume
    from, because a later start would resume from such a checkpoint. The best model is kept, unless the run starts from
    the beginning or from a checkpoint of another run.

    Args:
        out: folder of the run.
        checkpoint: checkpoint from which the run resumes; None if it starts from the beginning.
        step: step of that checkpoint, or 0.
    """
    folder = out / "checkpoints"
    own = checkpoint is not None and is_own(out, checkpoint)
    stale = [path for path in list_checkpoints(out) if not own or path.name > checkpoint_folder(out, step).name]
    if not own:
        stale += [path for path in (out / "best", out / "tensorboard") if path.exists()]
    if stale:
        names = ", ".join(path.name for path in stale)
        say(f"{out}: removing {names}, which this run does not continue")
    for path in [*folder.glob(".tmp-*"), *stale]:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    if own and checkpoint is not None:
        point_symlink(folder / "last", checkpoint.name)
    elif (folder / "last").is_symlink():
        (folder / "last").unlink()


def is_own(out: Path, checkpoint: Path) -> bool:
    """Return whether a checkpoint belongs to the run in `out`."""
    return checkpoint.resolve().parent == (out / "checkpoints").resolve()


def read_best_record(out: Path) -> dict[str, Any] | None:
    """Read the record of a run's best model, or return None if there is no best model."""
    path = out / "best" / METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_best_score(out: Path) -> tuple[float, int, int] | None:
    """Read the score by which a run's best model was chosen.

    Returns:
        The validation PSNR in dB, the step, and the number of slices; None if there is no best model.
    """
    record = read_best_record(out)
    if record is None:
        return None
    # Runs of earlier versions chose the best model on the whole split.
    chosen_by = record.get(CHOSEN_BY, record["validation"])
    return chosen_by["psnr_slice"], record["step"], chosen_by.get("slices", 0)


def save_best_figures(out: Path, figures: dict[str, Any]) -> None:
    """Replace the validation figures in the record of a run's best model. Only one rank calls it."""
    record = read_best_record(out)
    assert record is not None
    write_json(out / "best" / METRICS, record | {"validation": figures})


def save_best_score(out: Path, psnr: float, slices: int) -> None:
    """Replace the score by which the best model was chosen. Only one rank calls it."""
    record = read_best_record(out)
    assert record is not None
    write_json(out / "best" / METRICS, record | {CHOSEN_BY: {"psnr_slice": psnr, "slices": slices}})


def save_best(
    out: Path, weights: dict[str, Tensor], sizes: AmirConfig, config: TrainConfig, record: dict[str, Any]
) -> None:
    """Write the best model to `out/best`, replacing the previous one atomically. Only one rank calls it.

    Evaluation and export need no other files of the run.

    Args:
        out: folder of the run.
        weights: whole tensors with the shapes of the network's parameters.
        sizes: sizes of the network.
        config: configuration of the run.
        record: validation figures and the description of the data.
    """
    folder = out / "checkpoints" / ".tmp-best"
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        save_weights(weights, sizes, temporary / MODEL)
        write_text(temporary / CONFIG, to_yaml(config))
        write_json(temporary / METRICS, record)
    replace_folder(folder, out / "best")
