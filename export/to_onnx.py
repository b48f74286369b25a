"""`upfield export`: write a run's best model as one ONNX file, and check that its results match PyTorch's."""

import sys

from upfield.common.command import Command, execute
from upfield.export.configuration import ExportConfig


def export(config: ExportConfig) -> None:
    """Export the run's best model and print how closely its results match PyTorch's."""
    from upfield.export.modelfile.export_run import export_run

    export_run(config)


COMMAND = Command(
    "export",
    ExportConfig,
    export,
    positional=("run",),
    examples=("upfield export run --out model.onnx --evaluation evaluation/metrics.json",),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
