"""`upfield evaluate`: metrics and a report for runs and ONNX files."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.common.command import Command, execute
from upfield.common.errors import InputError
from upfield.common.files import check_writable
from upfield.evaluation.configuration import EvaluateConfig

if TYPE_CHECKING:
    import torch

    from upfield.evaluation.gather import Gathered
    from upfield.evaluation.measure import VolumeFigures, VolumeImages
    from upfield.evaluation.restorers import NamedRestorer
    from upfield.evaluation.summary import Evaluated
    from upfield.sharding.shardset.reading import ShardSplit

SLICES_PNG, VOLUMES = "slices.png", "volumes"


def evaluate(config: EvaluateConfig) -> int:
    """Measure each model, write its metrics and report, print its table, and compare several."""
    from upfield.distributed.launch import relaunch
    from upfield.evaluation.gather import Gathered, leave_group
    from upfield.evaluation.restorers import open_restorer
    from upfield.evaluation.volumes import refuse_changed_shards
    from upfield.sharding.shardset.manifest import read_manifest
    from upfield.sharding.shardset.reading import ShardSplit

    if not config.models:
        raise InputError("expected a run or an ONNX file, found none; give one, or several to compare them")
    if len({model.resolve() for model in config.models}) < len(config.models):
        raise InputError("models: expected each of them once, found one twice; leave it out")
    outs = folders_for(config.models, config.out)
    manifest = read_manifest(config.shards)
    if config.split not in manifest.tree["splits"]:
        known = ", ".join(manifest.tree["splits"])
        raise InputError(f"{config.shards}: expected a split {config.split}, found {known}; choose another --split")
    split = ShardSplit(config.shards, config.split, manifest)
    if split.num_samples == 0:
        raise InputError(
            f"{config.shards}: expected samples in split {config.split}, found none; choose another --split"
        )
    # Whatever is wrong with a model is said before any is measured, and before processes are started.
    for model in [*config.models, *([config.against] if config.against else [])]:
        open_restorer(model, config.device, manifest)
    for out in outs:
        claim(out, config)
    if config.processes > 1 and "WORLD_SIZE" not in os.environ:
        return relaunch(Path(__file__), with_absolute_paths(config))
    if rank() == 0:
        refuse_changed_shards(split)
    gathered = Gathered()
    trees = {
        str(model): evaluate_one(config, model, out, split, gathered)
        for model, out in zip(config.models, outs, strict=True)
    }
    if len(trees) > 1 and rank() == 0:
        compare_all(config, trees, outs, gathered)
    leave_group()
    return 0


def claim(out: Path, config: EvaluateConfig) -> None:
    """Refuse a folder for a report that cannot be written, before hours are spent, or that holds something else.

    Raises:
        InputError: it cannot be written, or lies in a shard set or where a run keeps its models.
    """
    place = out.resolve()
    runs = [model for model in config.models if model.is_dir()]
    inside = [config.shards, *(run / name for run in runs for name in ("best", "checkpoints"))]
    taken = [run for run in runs if place == run.resolve()]
    taken += [folder for folder in inside if folder.resolve() in (place, *place.parents)]
    if taken:
        raise InputError(f"{out}: expected a folder of the report's own, found {taken[0]}; choose another --out")
    check_writable(out, "--out")


def rank() -> int:
    """Give this process's number among those of the job."""
    return int(os.environ.get("RANK", "0"))


def with_absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """Give the configuration with absolute paths: its file will be read from another folder."""
    paths = {
        name: value.absolute() for name in ("against", "shards", "out") if (value := getattr(config, name)) is not None
    }
    return replace(config, models=[model.absolute() for model in config.models], **paths)


def folders_for(models: list[Path], out: Path) -> list[Path]:
    """Give the folder of each model's report: `out` for one, otherwise folders in it, called like the models."""
    if len(models) == 1:
        return [out]
    names: list[str] = []
    for model in models:
        name = model.resolve().stem if model.suffix == ".onnx" else model.resolve().name
        same = sum(taken == name or taken.startswith(f"{name}-") for taken in names)
        names.append(f"{name}-{same + 1}" if same else name)
    return [out / name for name in names]


def evaluate_one(
    config: EvaluateConfig, model: Path, out: Path, split: "ShardSplit", gathered: "Gathered"
) -> dict[str, Any]:
    """Measure one model and, on the main process, write what was found and print it; give what metrics.json holds.

    Collective: ALL ranks call it.

    Args:
        config: of the command.
        model: to be measured.
        out: folder of its report.
        split: what to measure on.
        gathered: what is measured already; the model, and what it is compared with, is added.
    """
    from upfield.common.files import write_json, write_text
    from upfield.evaluation.gather import gather_volumes
    from upfield.evaluation.measure import AGAINST, CUBIC, MODEL, Measuring, VolumeImages, real_first
    from upfield.evaluation.restorers import open_restorer
    from upfield.evaluation.summary import Evaluated, metrics_tree, slices_csv, table, volumes_csv
    from upfield.evaluation.volumes import save_volume
    from upfield.sharding.previews.selection import group_volumes

    # Full paths, so that no run can be called like the interpolation.
    names = {CUBIC: CUBIC, MODEL: identify(model)} | ({AGAINST: identify(config.against)} if config.against else {})
    restorer = open_restorer(model, config.device, split.manifest)
    against = open_restorer(config.against, config.device, split.manifest) if config.against else None
    candidates = {CUBIC: None, identify(model): restorer} | ({names[AGAINST]: against} if against else {})
    missing = {name: one for name, one in candidates.items() if name not in gathered.methods}
    if config.save_volumes:
        # Though it was measured already, where others were compared with it.
        missing[names[MODEL]] = restorer

    def save(images: VolumeImages) -> None:
        if config.save_volumes:
            save_volume(out / VOLUMES / f"{images.name}.nii.gz", images.restored[names[MODEL]], images.spacing_mm)

    if missing:
        how = Measuring(missing, config.batch_size, config.perturb, choose_device(config))
        gathered.add(*gather_volumes(how, split, real_first(group_volumes(split)), save))
    if rank() != 0:
        return {}
    volumes = tuple(volume.of(names) for volume in gathered.volumes)
    evaluated = Evaluated(volumes, about(config, restorer, against, split, volumes))
    tree = metrics_tree(evaluated)
    write_json(out / "metrics.json", tree)
    write_text(out / "slices.csv", slices_csv(evaluated))
    write_text(out / "volumes.csv", volumes_csv(evaluated))
    assert gathered.shown is not None
    write_page(out, tree, evaluated, gathered.shown.of(names), split, model, restorer)
    print(table(tree))
    say_what_is_stale(out / VOLUMES, {volume.name for volume in volumes} if config.save_volumes else set())
    print(f"{out / 'report.html'}", flush=True)
    return tree


def identify(model: Path) -> str:
    """Name a model among all that are measured."""
    return str(model.resolve())


def choose_device(config: EvaluateConfig) -> "torch.device":
    """Give where metrics are computed."""
    import torch

    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")


def say_what_is_stale(folder: Path, names: set[str]) -> None:
    """Say which restored volumes in a report's folder are not of this evaluation: they are left there."""
    stale = sorted(path for path in folder.glob("*.nii.gz") if path.name.removesuffix(".nii.gz") not in names)
    if stale:
        print(f"{folder}: {len(stale)} volumes are of an earlier evaluation, {stale[0].name} for one")


def write_page(
    out: Path,
    tree: dict[str, Any],
    evaluated: "Evaluated",
    shown: "VolumeImages",
    split: "ShardSplit",
    model: Path,
    restorer: "NamedRestorer",
) -> None:
    """Draw the report, and its slices as a picture of their own."""
    from upfield.common.files import write_bytes
    from upfield.evaluation.reports.figures import triplets_png
    from upfield.evaluation.reports.page import TrainingRecord, write_evaluation_report
    from upfield.evaluation.triplets import pick_triplets

    triplets = pick_triplets(evaluated, split, restorer)
    png = triplets_png(triplets) if triplets else None
    if png:
        write_bytes(out / SLICES_PNG, png)
    training = TrainingRecord.of(model, restorer.configuration)
    write_evaluation_report(out / "report.html", tree, evaluated, png, shown, training)


def about(
    config: EvaluateConfig,
    restorer: "NamedRestorer",
    against: "NamedRestorer | None",
    split: "ShardSplit",
    volumes: "Sequence[VolumeFigures]",
) -> dict[str, Any]:
    """Say what the figures are of and where they were computed."""
    from upfield.common.command import to_tree
    from upfield.evaluation.measure import AGAINST, MODEL
    from upfield.evaluation.provenance import provenance

    models = {MODEL: restorer} | ({AGAINST: against} if against else {})
    return {
        "restorer": restorer.origin.description,
        "against": against.origin.description if against else None,
        "models": {name: asdict(one.origin) for name, one in models.items()},
        "split": config.split,
        "data_sha256": split.manifest.data_sha256,
        "slices": split.num_samples,
        "subjects": len({(volume.cohort, volume.subject) for volume in volumes}),
        "volumes": dict(sorted(Counter(volume.kind for volume in volumes).items())),
        "machine": provenance(),
        "configuration": to_tree(config),
    }


def compare_all(
    config: EvaluateConfig, trees: dict[str, dict[str, Any]], outs: list[Path], gathered: "Gathered"
) -> None:
    """Compare cubic interpolation, what the models were measured against, and the models."""
    from upfield.evaluation.measure import CUBIC
    from upfield.evaluation.reports.comparison_table import write_comparison
    from upfield.evaluation.summary import Evaluated

    names = {CUBIC: CUBIC} | ({str(config.against): identify(config.against)} if config.against else {})
    names |= {name: identify(Path(name)) for name in trees}
    first = next(iter(trees.values()))
    evaluated = Evaluated(tuple(volume.of(names) for volume in gathered.volumes), first["about"])
    reports = {name: f"{out.name}/report.html" for name, out in zip(trees, outs, strict=True)}
    write_comparison(config.out, evaluated, list(trees), reports)


COMMAND = Command("evaluate", EvaluateConfig, evaluate, positional=("models",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
