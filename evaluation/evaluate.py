"""`upfield evaluate`: metrics and a report for runs and ONNX files."""

import sys

from upfield.common.command import Command, execute
from upfield.evaluation.configuration import EvaluateConfig


def evaluate(config: EvaluateConfig) -> int:
    """Evaluate every model, and compare them if there are several."""
    from upfield.evaluation.workflow import evaluate_models

    return evaluate_models(config)


COMMAND = Command(
    "evaluate",
    EvaluateConfig,
    evaluate,
    positional=("models",),
    examples=(
        "upfield evaluate run --shards shards --out evaluation",
        "upfield evaluate run model.onnx starter-t1 --shards shards --out comparison",
    ),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
