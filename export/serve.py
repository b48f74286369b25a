"""`upfield serve`: enhancement over HTTP, on Ray Serve."""

import sys

from upfield.export.configuration import ServeConfig
from upfield.sharding.command import Command, execute
from upfield.sharding.errors import InputError


def serve(config: ServeConfig) -> None:
    """Refuse: the service is not part of this version.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"expected a service on {config.host}:{config.port}, found that this version does not have it yet; "
        f"enhance files with: upfield enhance {config.model} SCAN_OR_FOLDER --out FOLDER"
    )


COMMAND = Command("serve", ServeConfig, serve, positional=("model",), required=("model",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
