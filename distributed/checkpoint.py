"""Checkpoints that are complete or absent, and the best model.

No generator's state is in them: gating noise and augmentation are pure functions of (seed, step or epoch, sample), and
nothing else draws.
"""

import json
import shutil
from dataclasses import asdict, dataclass
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

from upfield.distributed.average import WeightAverage
from upfield.distributed.configuration import TrainConfig
from upfield.model.amir import Amir, AmirConfig
from upfield.model.weights import CONFIG, METRICS, MODEL, read_weights, save_weights
from upfield.sharding.atomic import atomic_folder, point_symlink, replace_folder, write_json, write_text
from upfield.sharding.command import to_yaml
from upfield.sharding.errors import InputError
from upfield.sharding.progress import say
from upfield.sharding.tarshard import hash_file

AVERAGE, OPTIMIZER, PROGRESS, HASHES = "average.safetensors", "optimizer.pt", "progress.json", "sha256.json"
# Whole tensors on the CPU, however the training splits them; then a checkpoint fits any number of processes.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Progress:
    """Where a run stands; with weights, average and optimizer all that resuming needs."""

    step: int = 0
    """Global batches consumed."""
    skipped: int = 0
    """Those of them after which the weights did not change, since loss or gradient was not finite."""
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
        """Give the weights as whole tensors on the CPU, on the main process. Collective: ALL ranks call it."""
        state: dict[str, Any] = get_model_state_dict(self.network, options=WHOLE)
        # What was on the CPU already is the parameters' own memory, which goes on changing.
        return {name: tensor.clone() for name, tensor in state.items()}

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


def save_checkpoint(out: Path, sizes: AmirConfig, state: dict[str, Any], progress: Progress, keep: int) -> None:
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
    folder = out / "checkpoints" / f"step-{progress.step:08d}"
    if not folder.exists():  # A signal just after a checkpoint asks for the same one again.
        with atomic_folder(folder) as temporary:
            save_weights(state["weights"], sizes, temporary / MODEL)
            if state["average"]:
                save_file(state["average"], temporary / AVERAGE)
            torch.save({name: state[name] for name in ("optimizer", "scaler")}, temporary / OPTIMIZER)
            write_json(temporary / PROGRESS, asdict(progress))
            write_json(temporary / HASHES, {file.name: hash_file(file) for file in sorted(temporary.iterdir())})
    point_symlink(out / "checkpoints" / "last", folder.name)
    for old in sorted((out / "checkpoints").glob("step-*"))[:-keep]:
        shutil.rmtree(old)


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
            raise InputError(f"{resume}: expected a checkpoint, {damage}; name another with --run.resume")
        return Path(resume).resolve()
    folders = sorted((out / "checkpoints").glob("step-*"), reverse=True)
    for folder in folders:
        if not (damage := find_damage(folder)):
            return folder
        say(f"warning: {folder}: {damage}; going on from an older checkpoint")
    if folders:
        raise InputError(
            f"{out}: expected a whole checkpoint to go on from, found {len(folders)} damaged; "
            "start anew with --run.resume none"
        )
    return None


def find_damage(folder: Path) -> str:
    """Say what is wrong with a checkpoint, nothing where it is as it was written."""
    if missing := [name for name in (MODEL, OPTIMIZER, PROGRESS, HASHES) if not (folder / name).is_file()]:
        return f"found no {missing[0]} in it"
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        changed = [name for name, sha256 in hashes.items() if hash_file(folder / name) != sha256]
    except (OSError, ValueError, AttributeError) as error:
        return f"found it unreadable ({error})"
    return f"found {changed[0]} other than it was written" if changed else ""


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


def load_checkpoint(folder: Path, learner: Learner) -> Progress:
    """Load a checkpoint and give where it stood. Collective: ALL ranks call it.

    Raises:
        InputError: the weights do not fit the network.
    """
    try:
        learner.load(folder)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: expected weights that fit the configured model: {error}") from error
    return Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


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
