"""`upfield preview`: pairs as the reader gives them, per cohort and kind: a picture, or a page with sliders."""

import sys
from collections import Counter
from typing import TYPE_CHECKING

from upfield.common.command import Command, execute
from upfield.common.errors import InputError
from upfield.common.files import write_bytes
from upfield.sharding.configuration import PreviewConfig

if TYPE_CHECKING:
    from upfield.sharding.shardset.reading import ShardSplit

# What fills one picture, and what a browser still opens gladly (some 40 MB).
MOST_PAIRS = {".png": 80, ".html": 24}


def preview(config: PreviewConfig) -> None:
    """Draw the picture or the page and print what is on it."""
    from upfield.sharding.shardset.reading import ShardSplit

    suffix = config.out.suffix.lower()
    if suffix not in MOST_PAIRS:
        raise InputError(
            f"--out: expected a file name that ends in .png, for a picture, or .html, for sliders, found {config.out}"
        )
    if config.pairs > MOST_PAIRS[suffix]:
        raise InputError(f"pairs: expected at most {MOST_PAIRS[suffix]} in a {suffix}, found {config.pairs}")
    split = ShardSplit(config.shards, config.split)
    if split.num_samples == 0:
        raise InputError(f"{config.shards}: expected samples in split {config.split}, found none; see --split")
    draw = _draw_page if suffix == ".html" else _draw_picture
    content, shown = draw(split, config)
    write_bytes(config.out, content)
    what = "volumes" if suffix == ".html" else "pairs"
    counts = ", ".join(f"{cohort} {kind} {count}" for (cohort, kind), count in shown.items())
    print(f"{config.out}: {len(content) / 1e6:.1f} MB, {what} of {config.split} by cohort and kind: {counts}")


def _draw_picture(split: "ShardSplit", config: PreviewConfig) -> tuple[bytes, dict[tuple[str, str], int]]:
    from upfield.sharding.previews.contactsheet import draw_sheet
    from upfield.sharding.previews.selection import choose_groups

    groups = choose_groups(split, config.pairs, config.seed)
    shown = {(group.cohort, group.kind): len(group.shown) for group in groups}
    return draw_sheet(groups, _title(split, config), config.overlay), shown


def _draw_page(split: "ShardSplit", config: PreviewConfig) -> tuple[bytes, dict[tuple[str, str], int]]:
    from upfield.common.progress import track
    from upfield.sharding.previews.contactsheet import draw_histograms
    from upfield.sharding.previews.selection import choose_groups, choose_volumes
    from upfield.sharding.previews.slider import draw_slider

    histograms = draw_histograms(choose_groups(split, config.pairs, config.seed))
    pairs = choose_volumes(split, config.pairs, config.seed)
    tracked = track(pairs, "volumes", len(pairs))
    page = draw_slider(split, tracked, _title(split, config), config.overlay, histograms)
    return page.encode(), Counter((pair.first.cohort, pair.first.kind) for pair in pairs)


def _title(split: "ShardSplit", config: PreviewConfig) -> str:
    data = split.manifest.data_sha256[:12]
    return f"{config.split}: {split.num_samples} samples, data {data}, seed {config.seed}"


COMMAND = Command("preview", PreviewConfig, preview, positional=("shards",))


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return execute(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
