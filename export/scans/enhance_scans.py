"""Enhances files and folders: finds the scans, passes them through the pipeline, and reports those that failed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from upfield.common.errors import expect_choice, explain_error, failure_of, refused_arguments
from upfield.common.files import write_json
from upfield.common.progress import ProgressBar, print_result, say
from upfield.common.tables import MOST_ROWS, counted
from upfield.export.configuration import STARTER, Device, Engine, EnhanceConfig
from upfield.export.pretrained.packaged_model import find_model, model_at
from upfield.export.scans.enhancer import Enhancer
from upfield.export.scans.loaded_model import Model
from upfield.export.scans.outputs import EnhancePlan, EnhanceTask, plan_outputs
from upfield.export.scans.pipeline import Stages, run_pipeline
from upfield.export.scans.scan_claim import UNKNOWN_CONTRAST


@dataclass(frozen=True)
class ScanFailure:
    """A scan or a folder that could not be enhanced."""

    place: Path | None
    """The scan; None if the error's message names the place."""
    error: Exception
    """The reason."""

    def __str__(self) -> str:
        """Return the name of the scan, the reason, and what to do."""
        message = explain_error(self.error)[0]
        return message if self.place is None or str(self.place) in message else f"{self.place}: {message}"


def enhance(
    scans: str | Path | Sequence[str | Path],
    out: str | Path,
    model: str | Path | Model | None = None,
    *,
    batch_size: int = 4,
    device: Device = "auto",
    engine: Engine = "onnx",
    keep_ras: bool = False,
    like: str | Path | None = None,
    resume: bool = False,
    contrast: str | None = None,
    match: str | None = None,
) -> list[Path]:
    """Enhance scans from files to files, as `upfield enhance` does.

    Progress and warnings are printed on stderr.

    Args:
        scans: a NIfTI or MGH file, a folder that contains such files, or several of them.
        out: a `.nii` or `.nii.gz` file for a single scan, otherwise a folder.
        model: a model file (`.onnx`), the name of a model that comes with the package, or a loaded model, which is read
            again from its file; by default the starter model.
        batch_size: slices restored at once.
        device: `auto` uses a GPU if there is one; `cuda` and `tensorrt` fail if they cannot run.
        engine: `onnx` or `torch`, which runs the model file.
        keep_ras: write the axes in the order right, anterior, superior instead of the scan's own order.
        like: write on the grid of this image instead of voxels of 1 mm.
        resume: skip scans whose output exists and was made by the same model with the same parameters.
        contrast: contrast of all scans, such as `T1w`. By default, it is taken from their names and JSON files.
        match: pattern that the names of scans in folders must match.

    Returns:
        The files that were written. A JSON file beside each says how it was made.

    Raises:
        InputError: an argument, the model or some of the scans cannot be used. The other scans are enhanced first.
        RunError: the program failed on some scans, or no further scan could be written.

    Examples:
        >>> import upfield
        >>> upfield.enhance("scan.nii.gz", "enhanced.nii.gz", "model.onnx")
        [PosixPath('enhanced.nii.gz')]
        >>> upfield.read_scan("enhanced.nii.gz").voxels.shape
        (38, 45, 50)
    """
    expect_choice("device", device, get_args(Device))
    expect_choice("engine", engine, get_args(Engine))
    paths = [scans] if isinstance(scans, str | Path) else scans
    with refused_arguments():
        config = EnhanceConfig(
            scans=[Path(path) for path in paths],
            out=Path(out),
            model=model.path if isinstance(model, Model) else Path(model or STARTER),
            batch_size=batch_size,
            device=device,
            engine=engine,
            keep_ras=keep_ras,
            like=None if like is None else Path(like),
            resume=resume,
            contrast=contrast,
            match=match,
        )
    return enhance_scans(config, announce=lambda _: None)


def enhance_scans(config: EnhanceConfig, announce: Callable[[str], None] = print_result) -> list[Path]:
    """Enhance every scan; a scan that cannot be enhanced does not stop the others, and is listed at the end.

    Args:
        config: configuration of the command.
        announce: called with a line about each file that was written.

    Returns:
        The files that were written.

    Raises:
        InputError: the command cannot start, or some scans cannot be used.
        RunError: the program failed on some scans, or no further scan could be written.
    """
    config = replace(config, model=find_model(config.model))
    plan = plan_outputs(config.scans, config.out, config.like, config.match)
    tasks = plan.tasks
    failures = [ScanFailure(None, problem) for problem in plan.problems]
    num_tried = len(tasks) + len(failures)
    with ProgressBar("scans", len(tasks)) as bar:
        enhancer = Enhancer(config, bar, announce)
        if model := model_at(config.model):
            say(model.introduction)
        say(f"{config.model.name} runs on {enhancer.restorer.provider}")
        if warning := enhancer.restorer.card.warn_if_below_cubic(config.model.name):
            say(warning)
        if enhancer.restorer.card.contrasts is None:
            say(f"{config.model.name}: {UNKNOWN_CONTRAST}")

        def report(task: EnhanceTask, error: Exception | None) -> None:
            bar.advance()
            if error is not None:
                failures.append(ScanFailure(task.scan, error))
                if num_tried > 1 and len(failures) <= MOST_ROWS:
                    say(f"skipped: {failures[-1]}")

        stages = Stages(enhancer.read, enhancer.restore, enhancer.write, enhancer.stop)
        try:
            run_pipeline(tasks, stages, report)
        except BaseException:
            _list_failures(failures, config.out)
            num_written = len(enhancer.written)
            say(f"enhanced {num_written} of {counted(len(tasks), 'scan')}; --resume continues with the others")
            raise
    _say_skipped(plan, enhancer.num_skipped)
    if failures and num_tried == 1:
        raise failure_of(str(failures[0]), [failures[0].error])
    if failures:
        where = _list_failures(failures, config.out)
        raise failure_of(
            f"{len(failures)} of {counted(num_tried, 'scan')} could not be enhanced. {where}.",
            [failure.error for failure in failures],
        )
    return enhancer.written


def _say_skipped(plan: EnhancePlan, num_resumed: int) -> None:
    if plan.enhanced:
        say(f"skipped {counted(len(plan.enhanced), 'enhanced scan')} in the folders")
    for path, other in plan.repeated:
        if path == other:
            say(f"{path} is named twice and was enhanced once")
        else:
            say(f"{path} was skipped because it is the same file as {other}")
    if num_resumed:
        say(f"skipped {num_resumed} of {counted(len(plan.tasks), 'scan')}, already enhanced")


def _list_failures(failures: Sequence[ScanFailure], out: Path) -> str:
    """Print the first failures again at the end, because earlier lines have scrolled away.

    If there are more, a JSON file beside the output folder lists all of them.

    Returns:
        Where the reasons are, as a sentence without a full stop.
    """
    where = "The lines above state the reasons"
    if failures:
        say("could not be enhanced:")
    for failure in failures[:MOST_ROWS]:
        say(f"  {failure}")
    if len(failures) > MOST_ROWS:
        path = out.with_name(f"{out.name}.problems.json")
        where = f"{path} lists the reasons"
        trees = [{"scan": failure.place and str(failure.place), "reason": str(failure)} for failure in failures]
        try:
            write_json(path, {"problems": trees})
        except OSError as error:
            where = f"Of the reasons, {MOST_ROWS} are shown, because {path} cannot be written ({error.strerror})"
        say(f"  ... and {len(failures) - MOST_ROWS} more")
    return where
