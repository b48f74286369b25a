"""The steps of an evaluation: check the input, measure, gather over processes, summarise, report."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from upfield.common.addresses import is_remote
from upfield.common.cores import leave_busy_cores
from upfield.common.errors import InputError, RunError, expect_choice, failure_of, refused_arguments
from upfield.common.progress import say
from upfield.common.tables import counted, terminal_width
from upfield.distributed.launch import relaunch
from upfield.evaluation.configuration import EvaluateConfig
from upfield.evaluation.example_slices import choose_example_slices
from upfield.evaluation.input_checks import (
    EvaluationPlan,
    EvaluationTarget,
    check_input,
    check_reports,
    refuse_changed_shards,
)
from upfield.evaluation.measure import MeasurementSettings, measure_listed
from upfield.evaluation.measurements import AGAINST, CUBIC, MODEL, SplitMeasurements, VolumeFailure, VolumeImages
from upfield.evaluation.process_group import current_rank, leave_group, measure_split
from upfield.evaluation.provenance import count_volumes, describe_evaluation
from upfield.evaluation.reports.comparison_report import write_comparison
from upfield.evaluation.reports.metrics_text import metrics_text
from upfield.evaluation.reports.model_report import write_model_report
from upfield.evaluation.reports.report_content import ReportContent, TrainingRecord
from upfield.evaluation.reports.restored_volumes import save_volume, stale_volumes
from upfield.evaluation.restorers import ModelRestorer, open_restorers
from upfield.evaluation.summary import EvaluationResult, metrics_tree
from upfield.export.configuration import Engine
from upfield.export.modelfile.gpus import torch_device
from upfield.export.pretrained.packaged_model import run_or_model
from upfield.export.scans.loaded_model import Model
from upfield.model.numerics import use_exact_float32
from upfield.sharding.shardset.shard_set import ShardSet, open_shards
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import group_volumes

# Takes the configuration, the target, its restorers, the split, the result, and all measurements.
Report = Callable[
    [EvaluateConfig, EvaluationTarget, Mapping[str, ModelRestorer], ShardSplit, EvaluationResult, SplitMeasurements],
    object,
]
SCRIPT = Path(__file__).with_name("evaluate.py")
VOLUMES = "volumes"
# The folder that a configuration must name if no report is written.
NO_FOLDER = Path("evaluation")
# Volumes that the last line names if they could not be measured.
NAMED = 5


def evaluate(
    model: str | Path | Model,
    shards: str | Path | ShardSet,
    split: Literal["train", "val", "test"] = "test",
    out: str | Path | None = None,
    *,
    against: str | Path | Model | None = None,
    batch_size: int = 4,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    engine: Engine = "onnx",
    perturb: bool = True,
    save_volumes: bool = False,
) -> dict[str, Any]:
    """Measure a model and cubic interpolation on the volumes of a split, as `upfield evaluate` does.

    The evaluation runs in this process. Progress and warnings are printed on stderr. In a launched job, all processes
    must call this function, because they share the volumes. The function ends their process group.

    Args:
        model: run folder, model file, name of a model that comes with the package, or a loaded model. A loaded model is
            read again from its file.
        shards: shard set: a folder, an address, or an open set.
        split: split to measure on.
        out: folder for the report, with metrics.json. By default, nothing is written.
        against: another model, with which the model is compared.
        batch_size: slices that the model restores at once.
        device: `auto` uses a GPU if there is one; `cuda` fails if there is none.
        engine: `onnx` or `torch`, which runs model files.
        perturb: also measure how much the output changes if the input is perturbed. Without this, the measurement takes
            a quarter of the time.
        save_volumes: write each restored volume as NIfTI to `out/volumes`.

    Returns:
        The tree of metrics.json: `cubic` and `model`, each with the statistics (mean, median, std, min, max, count) of
        every metric, then comparisons, groups, definitions and provenance. In a launched job, only the main process
        gets it, and the others get an empty dictionary.

    Raises:
        InputError: an argument, the model or the set cannot be used.
        RunError: volumes could not be measured.

    Examples:
        >>> import upfield
        >>> metrics = upfield.evaluate("model.onnx", "shards", split="test")
        >>> metrics["cubic"]["psnr_slice"]["count"], metrics["about"]["subjects"]
        (20, 1)
        >>> gain_db = metrics["model"]["psnr_slice"]["mean"] - metrics["cubic"]["psnr_slice"]["mean"]
    """
    expect_choice("device", device, ("auto", "cuda", "cpu"))
    expect_choice("engine", engine, get_args(Engine))
    opened = shards if isinstance(shards, ShardSet) else open_shards(shards)
    if save_volumes and out is None:
        raise InputError("save_volumes: the volumes are written to the folder of the report. Name the folder with out.")
    with refused_arguments():
        config = EvaluateConfig(
            models=[_place_of(model)],
            against=None if against is None else _place_of(against),
            shards=opened.place,
            split=split,
            out=NO_FOLDER if out is None else Path(out),
            batch_size=batch_size,
            device=device,
            engine=engine,
            perturb=perturb,
            save_volumes=save_volumes,
            **vars(opened.access),
        )
    config = with_files_of_names(config)
    plan = check_input(config)
    if out is not None:
        check_reports(config, plan)
    results = evaluate_plan(config, plan, None if out is None else write_report)
    return metrics_tree(results[0]) if results else {}


def _place_of(model: str | Path | Model) -> Path:
    return model.path if isinstance(model, Model) else Path(model)


def evaluate_models(config: EvaluateConfig) -> int:
    """Evaluate every model, compare them if there are several, and return the exit code.

    A volume on which a method fails is left out of the reports about this method, which name it.

    Collective: ALL ranks of a launched job call it.

    Raises:
        InputError: volumes could not be measured, and the user can fix the problem.
        RunError: volumes could not be measured, for example because a model returned values that are not finite.
    """
    config = with_files_of_names(config)
    plan = check_input(config)
    check_reports(config, plan)
    if config.engine != "onnx" and all(model.is_dir() for model in config.models):
        say(f"--engine {config.engine} has no effect on runs, which are always measured in PyTorch")
    if config.processes > 1 and "WORLD_SIZE" not in os.environ:
        return relaunch(SCRIPT, with_absolute_paths(config))
    evaluate_plan(config, plan, print_report)
    return 0


def with_files_of_names(config: EvaluateConfig) -> EvaluateConfig:
    """Return the configuration with the files of the models that are given by the names of the package."""
    against = config.against and run_or_model(config.against)
    return replace(config, models=[run_or_model(model) for model in config.models], against=against)


def evaluate_plan(config: EvaluateConfig, plan: EvaluationPlan, report: Report | None) -> list[EvaluationResult]:
    """Measure every model, and report on it. Collective: ALL ranks call it.

    Args:
        config: configuration of the command.
        plan: its checked input.
        report: writes the report of a model; None writes nothing.

    Returns:
        The result for each model that could be measured, on the main process; an empty list on the others.

    Raises:
        InputError: volumes could not be measured, and the user can fix the problem.
        RunError: volumes could not be measured, for example because a model returned values that are not finite.
    """
    use_exact_float32()
    leave_busy_cores()
    if current_rank() == 0 and not is_remote(str(config.shards)):
        # The shards of a remote set are checked after their download.
        refuse_changed_shards(plan.split)
    measurements = SplitMeasurements()
    results: list[EvaluationResult] = []
    for target in plan.targets:
        restorers = open_restorers(target.model, config, plan.split.manifest)
        measurements = measure_target(config, target, restorers, plan.split, measurements)
        if current_rank() == 0 and measurements.with_all(method_names(target.model, config.against).values()):
            results.append(summarise(config, target, restorers, plan.split, measurements))
            if report is not None:
                report(config, target, restorers, plan.split, results[-1], measurements)
    if len(results) > 1 and report is not None:
        compare(config, plan, results, measurements)
    leave_group()
    if measurements.failures:
        raise failure_to_measure(measurements.failures)
    return results


def failure_to_measure(failures: Sequence[VolumeFailure]) -> InputError | RunError:
    """Return the error that ends an evaluation in which some volumes could not be measured."""
    names = sorted({failure.volume for failure in failures})
    shown = f"{', '.join(names[:NAMED])}{', ...' if names[NAMED:] else ''}"
    first = failures[0]
    message = (
        f"{counted(len(names), 'volume')} could not be measured: {shown}. For {first.volume}, the reason is: "
        f"{first.reason}"
    )
    failure = failure_of(message, [one.to_error() for one in failures])
    failure.met_by_all = True
    return failure


def with_absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """Return the configuration with absolute paths, because other processes read it from another folder."""
    names = ("against", "out", "cache_dir")
    paths: dict[str, Any] = {name: path.absolute() for name in names if (path := getattr(config, name)) is not None}
    if not is_remote(str(config.shards)):
        paths["shards"] = Path(config.shards).absolute()
    return replace(config, models=[model.absolute() for model in config.models], **paths)


def unique_name(model: Path) -> str:
    """Return the name by which the measurements identify a model: its full path."""
    return str(model.resolve())


def method_names(model: Path, against: Path | None) -> dict[str, str]:
    """Return the methods of one model's report: name in the report -> name in the measurements."""
    models = {MODEL: model} | ({AGAINST: against} if against else {})
    return {CUBIC: CUBIC} | {role: unique_name(path) for role, path in models.items()}


def measure_target(
    config: EvaluateConfig,
    target: EvaluationTarget,
    restorers: Mapping[str, ModelRestorer],
    split: ShardSplit,
    measurements: SplitMeasurements,
) -> SplitMeasurements:
    """Measure the methods of one model's report that have not been measured yet. Collective: ALL ranks call it.

    Args:
        config: configuration of the command.
        target: the model and its report folder.
        restorers: the model as `MODEL` and, if there is one, the model that it is compared with as `AGAINST`.
        split: the split to measure on.
        measurements: the measurements so far.

    Returns:
        `measurements` with the missing methods added.
    """
    names = method_names(target.model, config.against)
    missing = {name: restorers.get(role) for role, name in names.items() if name not in measurements.methods}
    if config.save_volumes:
        # The model may have been measured already, as the `against` of an earlier one, but its volumes were not saved.
        missing[names[MODEL]] = restorers[MODEL]
    if not missing:
        return measurements

    def save(images: VolumeImages) -> None:
        if config.save_volumes and names[MODEL] in images.restored:
            save_volume(target.folder / VOLUMES, images.name, images.restored[names[MODEL]], images.spacing_mm)

    settings = MeasurementSettings(missing, config.batch_size, config.perturb, metrics_device(config))
    return measurements.merge(measure_split(settings, split, save))


def summarise(
    config: EvaluateConfig,
    target: EvaluationTarget,
    restorers: Mapping[str, ModelRestorer],
    split: ShardSplit,
    measurements: SplitMeasurements,
) -> EvaluationResult:
    """Return the result for one model: its measurements and those of the methods that it is compared with."""
    names = method_names(target.model, config.against)
    volumes = tuple(volume.select(names) for volume in measurements.with_all(names.values()))
    return EvaluationResult(
        volumes, describe_evaluation(config, restorers, split, volumes, failed_volumes(names, measurements))
    )


def failed_volumes(names: Mapping[str, str], measurements: SplitMeasurements) -> list[dict[str, str]]:
    """Return the volumes that a report leaves out, with the method that failed and the reason.

    Args:
        names: name of a method in the report -> name in the measurements.
        measurements: the measurements so far.
    """
    roles = {name: role for role, name in names.items()}
    return [
        {"volume": failure.volume, "method": roles[failure.method], "reason": failure.reason}
        for failure in measurements.failures
        if failure.method in roles
    ]


def write_report(
    config: EvaluateConfig,
    target: EvaluationTarget,
    restorers: Mapping[str, ModelRestorer],
    split: ShardSplit,
    result: EvaluationResult,
    measurements: SplitMeasurements,
) -> tuple[Path, ReportContent]:
    """Write one model's report, and return the path of its page and what it contains."""
    restorer, folder = restorers[MODEL], target.folder
    content = ReportContent(
        metrics_tree(result),
        result,
        choose_example_slices(result, split, restorer),
        shown_images(config, target, restorers, split, measurements),
        TrainingRecord.of(target.model, restorer.configuration),
    )
    return write_model_report(folder, content), content


def print_report(
    config: EvaluateConfig,
    target: EvaluationTarget,
    restorers: Mapping[str, ModelRestorer],
    split: ShardSplit,
    result: EvaluationResult,
    measurements: SplitMeasurements,
) -> None:
    """Write one model's report, and print its table."""
    page, content = write_report(config, target, restorers, split, result, measurements)
    folder = target.folder
    print(metrics_text(content.metrics, terminal_width(sys.stdout)))
    saved = {volume.name for volume in result.volumes} if config.save_volumes else set[str]()
    if stale := stale_volumes(folder / VOLUMES, saved):
        first = stale[0].name
        volumes = f"{first} is" if len(stale) == 1 else f"{len(stale)} volumes, such as {first}, are"
        print(f"{folder / VOLUMES}: {volumes} left from an earlier evaluation. Delete what you no longer need.")
    print(page, flush=True)


def shown_images(
    config: EvaluateConfig,
    target: EvaluationTarget,
    restorers: Mapping[str, ModelRestorer],
    split: ShardSplit,
    measurements: SplitMeasurements,
) -> VolumeImages:
    """Return the images of one volume for a report, restored again if a method failed on the volume that was kept."""
    names = method_names(target.model, config.against)
    if measurements.shown is not None and measurements.shown.restored.keys() >= set(names.values()):
        return measurements.shown.select(names)
    first = measurements.with_all(names.values())[0]
    listed = next(pair for pair in group_volumes(split) if str(pair.first) == first.keys[0])
    methods = {role: restorers.get(role) for role in names}
    settings = MeasurementSettings(methods, config.batch_size, config.perturb, metrics_device(config))
    images = measure_listed(settings, split, listed).images
    assert images is not None
    return images


def metrics_device(config: EvaluateConfig) -> torch.device:
    """Return the device that computes the metrics. Only ONNX Runtime may be able to use the GPU."""
    return torch_device("cpu" if config.device == "cpu" else "auto")


def compare(
    config: EvaluateConfig, plan: EvaluationPlan, results: list[EvaluationResult], measurements: SplitMeasurements
) -> None:
    """Write the comparison of all models, including cubic interpolation and the model given as `against`."""
    models = [str(target.model) for target in plan.targets]
    names = {CUBIC: CUBIC} | ({str(config.against): unique_name(config.against)} if config.against else {})
    names |= {str(target.model): unique_name(target.model) for target in plan.targets}
    volumes = tuple(volume.select(names) for volume in measurements.with_all(names.values()))
    if not volumes:
        return
    pages = {str(target.model): f"{target.folder.name}/report.html" for target in plan.targets}
    about = results[0].about | count_volumes(volumes, failed_volumes(names, measurements))
    write_comparison(config.out, EvaluationResult(volumes, about), models, pages)
