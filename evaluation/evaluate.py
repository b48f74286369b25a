"""`upfield evaluate`: metrics and a report for runs and ONNX files."""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfield.evaluation.configuration import EvaluateConfig
from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError

if TYPE_CHECKING:
    from upfield.evaluation.measure import Measuring
    from upfield.evaluation.restorers import NamedRestorer
    from upfield.sharding.shardset import ShardSplit

SLICES_PNG = "slices.png"
MAIN_METRICS = ("psnr_slice", "psnr_slice_foreground", "ssim_slice", "ms_ssim_axial", "nrmse", "score_ulf_enc")


def evaluate(config: EvaluateConfig) -> int:
    """Measure each model, write its metrics and report, print its table, and compare several."""
    from upfield.distributed.launch import relaunch
    from upfield.evaluation.gather import leave_group
    from upfield.evaluation.restorers import open_restorer
    from upfield.sharding.manifest import read_manifest
    from upfield.sharding.shardset import ShardSplit

    assert config.shards is not None
    assert config.out is not None
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
    trees = {
        str(model): evaluate_one(config, model, out, split) for model, out in zip(config.models, outs, strict=True)
    }
    if len(trees) > 1 and rank() == 0:
        write_comparison(config.out, trees)
    leave_group()
    return 0


def claim(out: Path, config: EvaluateConfig) -> None:
    """Refuse a folder for a report that cannot be written, before hours are spent, or that holds something else.

    Raises:
        InputError: it cannot be written, or lies in a shard set or where a run keeps its models.
    """
    assert config.shards is not None
    place = out.resolve()
    runs = [model for model in config.models if model.is_dir()]
    inside = [config.shards, *(run / name for run in runs for name in ("best", "checkpoints"))]
    taken = [run for run in runs if place == run.resolve()]
    taken += [folder for folder in inside if folder.resolve() in (place, *place.parents)]
    if taken:
        raise InputError(f"{out}: expected a folder of the report's own, found {taken[0]}; choose another --out")
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        if is_new:
            out.rmdir()
    except OSError as error:
        raise InputError(
            f"{out}: expected a folder that can be written, found: {error.strerror}; choose another --out"
        ) from error


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


def evaluate_one(config: EvaluateConfig, model: Path, out: Path, split: "ShardSplit") -> dict[str, Any]:
    """Measure one model and, on the main process, write what was found and print it; give what metrics.json holds.

    Collective: ALL ranks call it.
    """
    import torch

    from upfield.evaluation.gather import gather_volumes
    from upfield.evaluation.measure import AGAINST, MODEL, Measuring, real_first
    from upfield.evaluation.restorers import open_restorer
    from upfield.evaluation.summary import Evaluated, metrics_tree, slices_csv, table, volumes_csv
    from upfield.sharding.atomic import write_json, write_text
    from upfield.sharding.selection import group_volumes

    restorers: dict[str, NamedRestorer] = {MODEL: open_restorer(model, config.device, split.manifest)}
    if config.against is not None:
        restorers[AGAINST] = open_restorer(config.against, config.device, split.manifest)
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    how = Measuring(restorers, config.batch_size, config.perturb, device)
    pairs = real_first(group_volumes(split))
    volumes, shown = gather_volumes(how, split, pairs, out / "volumes" if config.save_volumes else None)
    if rank() != 0:
        return {}
    assert shown is not None
    evaluated = Evaluated(tuple(volumes), about(config, restorers, split))
    tree = metrics_tree(evaluated)
    write_json(out / "metrics.json", tree)
    write_text(out / "slices.csv", slices_csv(evaluated))
    write_text(out / "volumes.csv", volumes_csv(evaluated))
    write_page(out, model, tree, evaluated, shown, split, how)
    print(table(tree))
    print(f"{out / 'report.html'}", flush=True)
    return tree


def write_page(
    out: Path, model: Path, tree: dict[str, Any], evaluated: Any, shown: Any, split: "ShardSplit", how: "Measuring"
) -> None:
    """Draw the report, and its slices as a picture of their own."""
    from upfield.evaluation.figures import triplets_png
    from upfield.evaluation.measure import MODEL
    from upfield.evaluation.page import TrainingRecord, write_evaluation_report
    from upfield.evaluation.triplets import pick_triplets
    from upfield.sharding.atomic import write_bytes

    triplets = pick_triplets(evaluated, split, how.restorers[MODEL])
    png = triplets_png(triplets) if triplets else None
    if png:
        write_bytes(out / SLICES_PNG, png)
    write_evaluation_report(out / "report.html", tree, evaluated, png, shown, TrainingRecord.of(model))


def about(config: EvaluateConfig, restorers: "dict[str, NamedRestorer]", split: "ShardSplit") -> dict[str, Any]:
    """Say what the figures are of and where they were computed."""
    import platform

    import torch

    from upfield.evaluation.measure import AGAINST, MODEL
    from upfield.sharding.command import to_tree

    against = restorers[AGAINST].description if AGAINST in restorers else None
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    machine = {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        **gpu,
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }
    return {
        "restorer": restorers[MODEL].description,
        "against": against,
        "split": config.split,
        "data_sha256": split.manifest.data_sha256,
        "slices": split.num_samples,
        "subjects": len(split.manifest.subjects(config.split)),
        "machine": machine,
        "configuration": to_tree(config),
    }


def write_comparison(out: Path, trees: dict[str, dict[str, Any]]) -> None:
    """Write compare.json, compare.csv and compare.html, a row per model, and print the table."""
    import csv
    import io

    from upfield.evaluation import report
    from upfield.evaluation.metrics import METRICS
    from upfield.evaluation.summary import counted
    from upfield.sharding.atomic import write_json, write_text

    first = next(iter(trees.values()))
    rows = {"cubic interpolation": first["cubic"]} | {name: tree["model"] for name, tree in trees.items()}
    means = {name: {metric: row[metric]["mean"] for metric in METRICS} for name, row in rows.items()}
    write_json(out / "compare.json", means)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([["model", *METRICS], *([name, *row.values()] for name, row in means.items())])
    write_text(out / "compare.csv", buffer.getvalue())
    shown = [
        [name, *("-" if row[m] is None else f"{row[m]:.{METRICS[m].digits}f}" for m in MAIN_METRICS)]
        for name, row in means.items()
    ]
    about = first["about"]
    title = f"{counted(about)}: means"
    header = ["", *(METRICS[m].label for m in MAIN_METRICS)]
    sections = [
        report.paragraph(f"{title}. Intervals and tests are in each model's own report."),
        report.table(header, shown),
        report.link_list({name: f"{folder}/report.html" for name, folder in _reports(trees, out).items()}, "Reports"),
    ]
    report.write_report(out / "compare.html", "Comparison", sections)
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    print(f"\n{title}")
    for row in (header, *shown):
        name, *numbers = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join([f"{name.strip():<{widths[0]}}", *numbers]))
    print(f"{out / 'compare.html'}", flush=True)


def _reports(trees: dict[str, dict[str, Any]], out: Path) -> dict[str, str]:
    folders = folders_for([Path(name) for name in trees], out)
    return {name: folder.name for name, folder in zip(trees, folders, strict=True)}


COMMAND = Command("evaluate", EvaluateConfig, evaluate, positional=("models",), required=("models", "shards", "out"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
