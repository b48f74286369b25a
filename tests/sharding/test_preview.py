import sys

import matplotlib.image
import numpy as np
import pytest

from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.manifest import write_manifest
from upfield.sharding.preview import (
    BACKGROUND,
    KeyParts,
    blank_page,
    choose_groups,
    draw_preview,
    main,
    parse_key,
    png_bytes,
    share_evenly,
    shorten,
)
from upfield.sharding.shardset import ShardSplit
from upfield.sharding.tarshard import Sample, write_shard

GROUPS = [("a", "real"), ("a", "synthetic"), ("b", "synthetic")]
NUM_SLICES = 12


def make_samples(context):
    """Three groups of two subjects; every other slice is empty, as at the sides of a head."""
    rng = np.random.default_rng(0)
    for cohort, kind in GROUPS:
        for subject in ("sub-1", "sub-real-2"):
            for x in range(NUM_SLICES):
                high = rng.random((1, 22, 20)) * (x % 2)
                low = rng.random((1 + 2 * context, 22, 20)) * (x % 2)
                key = f"{cohort}-{subject}-{kind}-0-x{x:03d}"
                yield Sample(key, low.astype(np.float16), high.astype(np.float16), {})


def make_set(root, context=0):
    config = ShardConfig(geometry=GeometryConfig(high_shape=(NUM_SLICES, 22, 20)), context=context)
    write_manifest(root, config, [], [write_shard(root, "train/000000", make_samples(context))])
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("preview") / "set")


def shown(shards, pairs, seed=0):
    return [item for group in choose_groups(ShardSplit(shards, "train"), pairs, seed) for item in group.shown]


def picture(shards, out, *flags):
    assert main([str(shards), "--out", str(out), *flags]) == 0
    return out.read_bytes()


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("ixi-IXI015-synthetic-0-x098", KeyParts("ixi", "IXI015", "synthetic", 0, 98)),
        ("nyu-sub-01-real-0-x007", KeyParts("nyu", "sub-01", "real", 0, 7)),
        ("a_1-x-real-3-x2-synthetic-12-x1000", KeyParts("a_1", "x-real-3-x2", "synthetic", 12, 1000)),
    ],
)
def test_keys_are_read_from_the_right(key, parts):
    assert parse_key(key) == parts


@pytest.mark.parametrize(("sizes", "total"), [([5, 5, 5], 8), ([1, 9, 9], 8), ([2, 2], 9), ([4, 4, 4], 2), ([3], 1)])
def test_shares_are_even_as_far_as_sizes_allow(sizes, total):
    shares = share_evenly(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    open_shares = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert max(shares) - min(open_shares, default=max(shares)) <= 1


@pytest.mark.parametrize("pairs", [3, 4, 8])
def test_every_cohort_and_kind_is_shown(shards, pairs):
    items = shown(shards, pairs)
    assert len(items) == pairs
    assert list(dict.fromkeys((item.parts.cohort, item.parts.kind) for item in items)) == GROUPS


def test_subjects_take_turns(shards):
    assert len({(item.parts.cohort, item.parts.kind, item.parts.subject) for item in shown(shards, 6)}) == 6


def test_empty_slices_come_only_when_nothing_else_is_left(shards):
    assert all((item.high > BACKGROUND).mean() > 0.5 for item in shown(shards, 8))
    assert sum(item.high.max() == 0 for item in shown(shards, 72)) == 36


def test_the_choice_depends_on_the_seed_alone(shards):
    keys = [[item.parts for item in shown(shards, 8, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_the_same_seed_gives_the_same_bytes(shards, tmp_path, capsys):
    first, again = (picture(shards, tmp_path / name, "--pairs", "3") for name in ("a.png", "deep/b.png"))
    assert first == again
    assert "a real 1, a synthetic 1, b synthetic 1" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["a.png", "b.png"]


def test_eight_pairs_are_1600_pixels_wide(shards, tmp_path):
    picture(shards, tmp_path / "grid.PNG")
    assert matplotlib.image.imread(tmp_path / "grid.PNG", format="png").shape[1] == 1600


def test_neighbours_are_drawn_too(shards, tmp_path):
    heights = []
    for root in (shards, make_set(tmp_path / "set", context=2)):
        picture(root, tmp_path / "grid.png", "--pairs", "3")
        heights.append(matplotlib.image.imread(tmp_path / "grid.png").shape[0])
    assert heights[0] < heights[1]


def test_slices_stand_upright_and_look_to_the_left(tmp_path):
    pixels = np.zeros((22, 20))
    pixels[-6:, -4:] = 1
    page = blank_page(2.2, 2.0, "black")
    page.image((0, 0, 2.2, 2.0), pixels)
    (tmp_path / "slice.png").write_bytes(png_bytes(page.figure))
    drawn = matplotlib.image.imread(tmp_path / "slice.png")[..., 0]
    assert drawn[:35, :55].min() > 0.9
    assert drawn[45:].max() == drawn[:, 65:].max() == 0


@pytest.mark.parametrize("text", ["IXI015", "s" * 40])
def test_labels_fit_their_column(text):
    short = shorten(text, 1.2, 9)
    assert len(short) <= 15
    assert (short == text) == (len(text) <= 15)


def test_a_group_without_pairs_still_has_its_histogram(shards):
    groups = choose_groups(ShardSplit(shards, "train"), 1, 0)
    assert [len(group.shown) for group in groups] == [1, 0, 0]
    assert all(group.measured for group in groups)
    assert draw_preview(groups, "$\\broken{ mathematics $").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "grid.jpg"], "expected a file name that ends in .png, found grid.jpg"),
        (["--out", "grid.png", "--split", "val"], "expected samples in split val, found none"),
        (["--out", "grid.png", "--pairs", "0"], "expected at least 1, found 0"),
        (["--out", "grid.png", "--pairs", "999"], "expected at most 80"),
        ([], "expected --out, found none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(shards, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(shards), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_set_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "grid.png")]) == 2
    assert "expected a complete shard set, found no shard set" in capsys.readouterr().err


def test_foreign_keys_are_refused(tmp_path, capsys):
    half = np.zeros((1, 22, 20), np.float16)
    entry = write_shard(tmp_path, "train/000000", [Sample("000017", half, half, {})])
    write_manifest(tmp_path, ShardConfig(geometry=GeometryConfig(high_shape=(NUM_SLICES, 22, 20))), [], [entry])
    assert main([str(tmp_path), "--out", str(tmp_path / "grid.png")]) == 2
    assert "expected a key like cohort-subject-kind-variant-x090, found '000017'" in capsys.readouterr().err


def test_without_matplotlib_the_error_says_what_to_install(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(shards), "--out", str(tmp_path / "grid.png")]) == 2
    assert "pip install 'upfield[demo]'" in capsys.readouterr().err
