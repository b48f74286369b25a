"""Check the user's input before an evaluation starts processes or measures anything."""

from dataclasses import dataclass
from pathlib import Path

from upfield.common.addresses import is_remote
from upfield.common.drawing import expect_matplotlib
from upfield.common.errors import InputError, ShardSetError
from upfield.common.files import check_writable, hash_file
from upfield.common.progress import track
from upfield.evaluation.configuration import EvaluateConfig
from upfield.evaluation.restorers import open_restorer
from upfield.sharding.shardset.shard_set import ShardSet, open_set
from upfield.sharding.shardset.shard_split import ShardSplit


@dataclass(frozen=True)
class EvaluationTarget:
    """One model to evaluate."""

    model: Path
    """Run folder, or an `.onnx` file."""
    folder: Path
    """Folder for the report of this model."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The checked input of an evaluation."""

    split: ShardSplit
    """The split to measure on, which is not empty."""
    targets: tuple[EvaluationTarget, ...]
    """The models, at least one, without duplicates."""


def check_input(config: EvaluateConfig) -> EvaluationPlan:
    """Check the models and the shard set.

    Raises:
        InputError: a model is missing, is named twice or does not fit the shard set, or the set does not have the
            split.
    """
    if len({model.resolve() for model in config.models}) < len(config.models):
        raise InputError("models: a model is named twice. Name each model once.")
    shards = open_set(config.shards, config)
    manifest, split = shards.manifest, open_split(config, shards)
    for model in [*config.models, *([config.against] if config.against else [])]:
        open_restorer(model, config, manifest)
    pairs = zip(config.models, report_folders(config.models, config.out), strict=True)
    return EvaluationPlan(split, tuple(EvaluationTarget(model, folder) for model, folder in pairs))


def open_split(config: EvaluateConfig, shards: ShardSet) -> ShardSplit:
    """Open the split to measure on.

    Raises:
        InputError: the shard set has no such split, or the split has no samples.
    """
    split = shards.split(config.split)
    if split.num_samples == 0:
        raise InputError(f"{shards.name}: split {config.split} has no samples. Choose another --split.")
    return split


def report_folders(models: list[Path], out: Path) -> list[Path]:
    """Return the report folder of each model: `out` for a single model, otherwise `out/MODEL`."""
    if len(models) == 1:
        return [out]
    names: list[str] = []
    for model in models:
        name = model.resolve().stem if model.suffix == ".onnx" else model.resolve().name
        same = sum(taken == name or taken.startswith(f"{name}-") for taken in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return [out / name for name in names]


def check_reports(config: EvaluateConfig, plan: EvaluationPlan) -> None:
    """Check that a report can be drawn and written for each model.

    Raises:
        InputError: matplotlib is not installed, or a folder cannot be written or belongs to a shard set or to a run.
    """
    expect_matplotlib()
    for target in plan.targets:
        check_report_folder(target.folder, config)


def check_report_folder(folder: Path, config: EvaluateConfig) -> None:
    """Check that a report can be written to a folder, before a measurement that may take hours.

    Raises:
        InputError: the folder cannot be written, or it belongs to a shard set or to a run.
    """
    resolved = folder.resolve()
    runs = [model for model in config.models if model.is_dir()]
    shards = [] if is_remote(str(config.shards)) else [Path(config.shards)]
    inside = [*shards, *(run / name for run in runs for name in ("best", "checkpoints"))]
    taken = [run for run in runs if resolved == run.resolve()]
    taken += [other for other in inside if other.resolve() in (resolved, *resolved.parents)]
    if taken:
        raise InputError(f"{folder}: a report cannot be written into {taken[0]}. Choose another --out.")
    check_writable(folder, "--out")


def refuse_changed_shards(split: ShardSplit) -> None:
    """Compare each shard of a split with its hash in the manifest.

    Raises:
        ShardSetError: a shard is missing, or its content differs.
    """
    for entry in track(split.entries, "shards checked", len(split.entries)):
        path = Path(split.root) / f"{entry.name}.tar"
        if not path.is_file():
            raise ShardSetError(f"{path}: this shard is missing. Run upfield verify.")
        if (found := hash_file(path)) != entry.sha256:
            raise ShardSetError(
                f"{path}: expected sha256 {entry.sha256} as in the manifest, found {found}. Run upfield verify, then "
                "build the set again."
            )
