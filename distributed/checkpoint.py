"""Checkpoints that are complete or absent, and the best model.

No generator's state is in them: gating noise and augmentation are pure functions of (seed, step or epoch, sample), and
nothing else draws.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from upfield.common.command import to_yaml
from upfield.common.errors import InputError
from upfield.common.files import atomic_folder, hash_file, point_symlink, replace_folder, write_json, write_text
from upfield.common.progress import say
from upfield.distributed.average import WeightAverage
from upfield.distributed.configuration import TrainConfig
from upfield.model.amir import Amir, AmirConfig
from upfield.model.weights import CONFIG, METRICS, MODEL, read_weights, save_weights

AVERAGE, OPTIMIZER, PROGRESS, HASHES = "average.safetensors", "optimizer.pt", "progress.json", "sha256.json"
NAME = re.compile(r"step-\d{8,}")
# Whole tensors on the CPU, however the training splits them; then a checkpoint fits any number of processes.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class TrainingProgress:
    """Where a run stands; with weights, average and optimizer all that resuming needs."""

    step: int = 0
    """Global batches consumed."""
    skipped: int = 0
    """Those of them that were left out, since loss or gradient was not finite."""
    overflows: int = 0
    """Those of them that fp16's loss scaling left out, to try again with a lower scale."""
    validated_step: int = 0
    """The step after which the weights were last validated."""
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
    pending: dict[str, float] = field(default_factory=dict)
    """Loss terms summed since the last line of the log."""
    pending_steps: int = 0
    """Over how many steps."""

    @property
    def updates(self) -> int:
        """How often the weights have changed."""
        return self.step - self.skipped - self.overflows


@dataclass(frozen=True)
class Learner:
    """All that learns, and so all that a checkpoint holds beside the progress."""

    network: Amir
    """Unwrapped."""
    optimizer: Optimizer
    """Unwrapped."""
    average: WeightAverage | None
    """Of the network's weights, where one is kept."""
    scaler: torch.amp.GradScaler | None
    """Of the loss, in fp16."""

    def state(self) -> dict[str, Any]:
        """Give everything as whole tensors on the CPU, on the main process. Collective: ALL ranks call it."""
        average = {}
        if self.average is not None:
            with self.average.swapped_in():
                average = self.weights()
        optimizer = get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)
        scaler = self.scaler.state_dict() if self.scaler is not None else {}
        return {"weights": self.weights(), "average": average, "optimizer": optimizer, "scaler": scaler}

    def weights(self) -> dict[str, Tensor]:
        """Give the weights, whole tensors of the network's shapes on the CPU, on the main process.

        Collective: ALL ranks call it.
        """
        state: dict[str, Any] = get_model_state_dict(self.network, options=WHOLE)
        # What was on the CPU already is the parameters' own memory, which goes on changing.
        on_cpu = next(self.network.parameters()).device.type == "cpu"
        return {name: tensor.clone() for name, tensor in state.items()} if on_cpu else state

    def load(self, folder: Path) -> None:
        """Take over what a checkpoint holds. Collective: ALL ranks call it."""
        if self.average is not None:
            with self.average.swapped_in():
                # A run that kept no average so far starts it at its weights.
                file = folder / AVERAGE
                self._load_weights(read_weights(file if file.is_file() else folder / MODEL))
        self._load_weights(read_weights(folder / MODEL))
        saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        set_optimizer_state_dict(self.network, self.optimizer, saved["optimizer"], options=WHOLE)
        if self.scaler is not None and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])

    def _load_weights(self, weights: dict[str, Any]) -> None:
        set_model_state_dict(self.network, weights, options=WHOLE)


def save_checkpoint(out: Path, sizes: AmirConfig, state: dict[str, Any], progress: TrainingProgress, keep: int) -> None:
    """Write a checkpoint, point `last` at it, and remove the oldest. One rank calls it.

    Args:
        out: folder of the run.
        sizes: of the network.
        state: the learner's.
        progress: where the run stands.
        keep: checkpoints to keep.

    Raises:
        OSError: it could not be written; what was there before is as it was.
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
    for old in checkpoints_of(out)[:-keep]:
        shutil.rmtree(old)


def save_progress(out: Path, progress: TrainingProgress) -> None:
    """Write into the checkpoint of this very step what a validation has added since. One rank calls it."""
    write_json(checkpoint_folder(out, progress.step) / PROGRESS, asdict(progress))


def checkpoint_folder(out: Path, step: int) -> Path:
    """Give the place of a run's checkpoint."""
    return out / "checkpoints" / f"step-{step:08d}"


def checkpoints_of(out: Path) -> list[Path]:
    """Give a run's checkpoints, oldest first."""
    return sorted(path for path in (out / "checkpoints").glob("step-*") if NAME.fullmatch(path.name))


def find_checkpoint(out: Path, resume: str) -> Path | None:
    """Give the checkpoint to go on from, or None to start anew.

    Args:
        out: folder of the run.
        resume: `auto`, `none`, or a checkpoint's path.

    Raises:
        InputError: the named checkpoint is not one, or is damaged, or all of the run's are.
    """
    if resume == "none":
        return None
    if resume != "auto":
        if damage := find_damage(Path(resume)):
            known = (
                ", ".join(str(path) for path in checkpoints_of(Path(resume))) or "auto, none, or a checkpoint's folder"
            )
            raise InputError(f"{resume}: expected a checkpoint, {damage}; name another with --run.resume: {known}")
        return Path(resume).resolve()
    folders = checkpoints_of(out)
    for folder in reversed(folders):
        if not (damage := find_damage(folder)):
            return folder
        say(f"warning: {folder}: {damage}; going on from an older checkpoint")
    if folders:
        raise InputError(
            f"{out}: expected a whole checkpoint to go on from, found {len(folders)} damaged; start anew with another "
            f"--run.out, from the best model so far, if there is one, with --model.init {out / 'best' / MODEL}"
        )
    return None


def find_damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint, nothing where it is as it was written."""
    if missing := [name for name in (MODEL, OPTIMIZER, PROGRESS, HASHES) if not (folder / name).is_file()]:
        return f"found no {missing[0]} in it"
    try:
        read_progress(folder)
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        # A validation rewrites the progress.
        changed = [name for name, sha256 in hashes.items() if name != PROGRESS and hash_file(folder / name) != sha256]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"found it unreadable ({error})"
    return f"found {changed[0]} other than it was written" if changed else ""


def read_progress(folder: Path) -> TrainingProgress:
    """Read where a checkpoint stood.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
        TypeError: it has other fields than this version knows.
    """
    return TrainingProgress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


def clear_leftovers(out: Path, checkpoint: Path | None, step: int) -> None:
    """Remove what the run to come will not continue. One rank calls it.

    That is what a killed process left half-written, and every checkpoint after the one resumed from: a later start
    would mistake them for this run's. The best model stays until a better one is found, unless the run starts anew or
    from a checkpoint of another run.

    Args:
        out: folder of the run.
        checkpoint: the checkpoint resumed from; None starts anew.
        step: where it stood; 0 starts anew.
    """
    folder = out / "checkpoints"
    own = checkpoint is not None and is_own(out, checkpoint)
    stale = [path for path in checkpoints_of(out) if not own or path.name > checkpoint_folder(out, step).name]
    if not own:
        stale += [path for path in (out / "best", out / "tensorboard") if path.exists()]
    if stale:
        names = ", ".join(path.name for path in stale)
        say(f"{out}: removing {names}, of an earlier run or later than where this one goes on")
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
    """Tell whether a checkpoint is a run's own."""
    return checkpoint.resolve().parent == (out / "checkpoints").resolve()


def read_best_score(out: Path) -> tuple[float, int] | None:
    """Give the validation PSNR in dB of a run's best model and the step it was measured at, or None without one."""
    if not (out / "best" / METRICS).is_file():
        return None
    record = json.loads((out / "best" / METRICS).read_text(encoding="utf-8"))
    return record["validation"]["psnr_slice"], record["step"]


def load_checkpoint(folder: Path, learner: Learner) -> None:
    """Load what learns from a checkpoint. Collective: ALL ranks call it.

    Raises:
        InputError: the weights do not fit the network.
    """
    try:
        learner.load(folder)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder}: expected weights that fit the configured model, found others: {reason}") from error


def save_best(
    out: Path, weights: dict[str, Tensor], sizes: AmirConfig, config: TrainConfig, record: dict[str, Any]
) -> None:
    """Write what evaluation and export need to `out/best`, replacing the previous best in one step. One rank calls it.

    Args:
        out: folder of the run.
        weights: whole tensors, of the network's shapes.
        sizes: of the network.
        config: the run's configuration.
        record: what was measured, with the data's description.
    """
    folder = out / "checkpoints" / ".tmp-best"
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        save_weights(weights, sizes, temporary / MODEL)
        write_text(temporary / CONFIG, to_yaml(config))
        write_json(temporary / METRICS, record)
    replace_folder(folder, out / "best")
