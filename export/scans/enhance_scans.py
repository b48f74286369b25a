"""Enhances files and folders: finds the scans, passes them through the pipeline, and reports those that failed."""

from collections.abc import Sequence

from upfield.common.errors import InputError
from upfield.common.progress import ProgressBar, say
from upfield.export.configuration import EnhanceConfig
from upfield.export.scans.enhancer import Enhancer
from upfield.export.scans.outputs import EnhanceTask, plan_outputs
from upfield.export.scans.pipeline import Stages, run_pipeline


def enhance_scans(config: EnhanceConfig) -> None:
    """Enhance every scan; a scan that cannot be enhanced does not stop the others, and is listed at the end.

    Raises:
        InputError: the command cannot start, or some scans could not be enhanced.
        RunError: no further scan could be written, for example because the disk is full.
    """
    plan = plan_outputs(config.scans, config.out, config.like)
    tasks, failures = plan.tasks, list(plan.problems)
    num_tried = len(tasks) + len(failures)
    with ProgressBar("scans", len(tasks)) as bar:
        enhancer = Enhancer(config, bar)
        say(f"{config.model.name} runs on {enhancer.restorer.provider}")

        def report(_: EnhanceTask, error: InputError | None) -> None:
            bar.advance()
            if error is not None:
                failures.append(str(error))
                if num_tried > 1:
                    say(f"skipped: {error}")

        stages = Stages(enhancer.read, enhancer.restore, enhancer.write, enhancer.stop)
        try:
            run_pipeline(tasks, stages, report)
        except BaseException:
            _list_failures(failures)
            say(f"{enhancer.num_written} of {len(tasks)} scans were enhanced; --resume continues with the others")
            raise
    if plan.enhanced:
        say(f"{len(plan.enhanced)} files in the folders were skipped because they are enhanced scans themselves")
    if enhancer.num_skipped:
        say(f"{enhancer.num_skipped} of {len(tasks)} scans were skipped because they were already enhanced")
    if failures and num_tried == 1:
        raise InputError(failures[0])
    if failures:
        _list_failures(failures)
        raise InputError(
            f"{len(failures)} of {num_tried} scans could not be enhanced. The lines above state the reasons."
        )


def _list_failures(failures: Sequence[str]) -> None:
    """Print all failures again at the end, because earlier lines have scrolled away."""
    if failures:
        say("could not be enhanced:")
    for failure in failures:
        say(f"  {failure}")
