"""`upfield serve`: enhancement over HTTP, on Ray Serve."""

import sys

from upfield.common.command import Command, execute
from upfield.export.configuration import ServeConfig
from upfield.export.service.environment import expect_packages


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    expect_packages()
    from upfield.export.service.lifecycle import run_service

    run_service(config)


COMMAND = Command(
    "serve",
    ServeConfig,
    serve,
    positional=("model",),
    examples=("upfield serve model.onnx --port 8000",),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
