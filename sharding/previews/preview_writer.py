"""Write a preview of a split: a picture of pairs of slices, or a page with sliders through pairs of volumes."""

from collections import Counter

from upfield.common.errors import InputError
from upfield.common.files import check_writable_file, write_bytes
from upfield.common.progress import track
from upfield.sharding.configuration import PreviewConfig
from upfield.sharding.previews.contact_sheet import draw_histograms, draw_sheet
from upfield.sharding.previews.selection import choose_groups, choose_volumes
from upfield.sharding.previews.slider import draw_slider
from upfield.sharding.shardset.shard_set import open_set
from upfield.sharding.shardset.shard_split import ShardSplit

# One picture has room for 80 pairs, and browsers open pages of 24 (about 40 MB) without trouble.
MAX_PAIRS = {".png": 80, ".html": 24}


def write_preview(config: PreviewConfig) -> None:
    """Draw the picture or the page, write it, and print what it shows.

    Raises:
        InputError: unknown file type, the file cannot be written, too many pairs, no samples in the split, or a library
            is missing.
        ShardSetError: there is no complete shard set, or it is damaged.
        FetchError: a shard could not be downloaded.
    """
    suffix = config.out.suffix.lower()
    if suffix not in MAX_PAIRS:
        raise InputError(f"--out: the file name must end in .png (a picture) or .html (sliders), found {config.out}.")
    if config.pairs > MAX_PAIRS[suffix]:
        raise InputError(f"pairs: expected at most {MAX_PAIRS[suffix]} in a {suffix} file, found {config.pairs}.")
    check_writable_file(config.out, "--out")
    split = open_set(config.shards, config).split(config.split)
    if split.num_samples == 0:
        raise InputError(f"{split.root}: split {config.split} has no samples. Choose another --split.")
    draw = _draw_page if suffix == ".html" else _draw_picture
    content, shown = draw(split, config)
    write_bytes(config.out, content)
    unit = "volumes" if suffix == ".html" else "pairs"
    counts = ", ".join(f"{cohort} {kind} {count}" for (cohort, kind), count in shown.items())
    print(f"{config.out}: {len(content) / 1e6:.1f} MB, {unit} of {config.split} by cohort and kind: {counts}")


def _draw_picture(split: ShardSplit, config: PreviewConfig) -> tuple[bytes, dict[tuple[str, str], int]]:
    groups = choose_groups(split, config.pairs, config.seed)
    shown = {(group.cohort, group.kind): len(group.shown) for group in groups}
    return draw_sheet(groups, _title(split, config), config.overlay), shown


def _draw_page(split: ShardSplit, config: PreviewConfig) -> tuple[bytes, dict[tuple[str, str], int]]:
    histograms = draw_histograms(choose_groups(split, config.pairs, config.seed))
    pairs = choose_volumes(split, config.pairs, config.seed)
    tracked = track(pairs, "volumes", len(pairs))
    page = draw_slider(split, tracked, _title(split, config), config.overlay, histograms)
    return page.encode(), Counter((pair.first.cohort, pair.first.kind) for pair in pairs)


def _title(split: ShardSplit, config: PreviewConfig) -> str:
    data = split.manifest.data_sha256[:12]
    return f"{config.split}: {split.num_samples} samples, data {data}, seed {config.seed}"
