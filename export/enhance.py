"""`upfield enhance`: NIfTI in -> NIfTI out, files or folders, batched."""

import sys

from upfield.common.command import Command, execute
from upfield.common.errors import InputError
from upfield.export.configuration import EnhanceConfig
from upfield.export.scans.outputs import EnhanceTask, plan_outputs


def enhance(config: EnhanceConfig) -> None:
    """Enhance every scan; one that cannot be read does not stop the others, and is named at the end.

    Raises:
        InputError: the command cannot begin, or some scans could not be enhanced.
    """
    from upfield.common.progress import ProgressBar, say
    from upfield.export.scans.enhancer import Enhancer
    from upfield.export.scans.pipeline import Stages, run_pipeline

    plan = plan_outputs(config.scans, config.out, config.like)
    jobs, failures = plan.jobs, list(plan.problems)
    num_tried = len(jobs) + len(failures)
    with ProgressBar("scans", len(jobs)) as bar:
        enhancer = Enhancer(config, bar)
        say(f"{config.model.name} on {enhancer.restorer.provider}")

        def report(_: EnhanceTask, error: InputError | None) -> None:
            bar.advance()
            if error is not None:
                failures.append(str(error))
                if num_tried > 1:
                    say(f"left out: {error}")

        stages = Stages(enhancer.read, enhancer.restore, enhancer.write, enhancer.stop)
        try:
            run_pipeline(jobs, stages, report)
        except BaseException:
            _name(failures)
            say(f"{enhancer.num_written} of {len(jobs)} scans were enhanced; --resume goes on from there")
            raise
    if plan.enhanced:
        say(f"{len(plan.enhanced)} files in the folders are enhanced scans themselves and were left out")
    if enhancer.num_skipped:
        say(f"{enhancer.num_skipped} of {len(jobs)} scans were done already and were left as they are")
    if failures and num_tried == 1:
        raise InputError(failures[0])
    _name(failures)
    if failures:
        raise InputError(f"{len(failures)} of {num_tried} scans could not be enhanced, for the reasons above")


def _name(failures: list[str]) -> None:
    """Name everything that went wrong once more in the end, where it is read."""
    from upfield.common.progress import say

    if failures:
        say("could not be enhanced:")
    for failure in failures:
        say(f"  {failure}")


COMMAND = Command("enhance", EnhanceConfig, enhance, positional=("model", "scans"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
