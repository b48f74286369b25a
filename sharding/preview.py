"""`upfield preview`: draw pairs as the reader returns them, as a picture or as a page with sliders."""

import sys

from upfield.common.command import Command, execute
from upfield.sharding.configuration import PreviewConfig


def preview(config: PreviewConfig) -> None:
    """Write the picture or the page and print what it shows.

    Raises:
        InputError: unknown file type, too many pairs, no samples in the split, or a library is missing.
        ShardSetError: there is no complete shard set, or it is damaged.
    """
    from upfield.sharding.previews.preview_writer import write_preview

    write_preview(config)


COMMAND = Command(
    "preview",
    PreviewConfig,
    preview,
    positional=("shards",),
    examples=("upfield preview shards --out pairs.png", "upfield preview shards --out volumes.html --split test"),
)


def main(argv: list[str] | None = None) -> int:
    """Run `upfield preview` and return its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
