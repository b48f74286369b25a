import shutil
import sys

import matplotlib.image
import numpy as np
import pytest
from built_sets import as_by_an_earlier_version

from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.preview import main
from upfield.sharding.shardset.shard_writer import Sample, write_shard


def write_foreign(root, keys):
    """Write a set of blank training samples with these keys."""
    half = np.zeros((1, 22, 20), np.float16)
    entries = [write_shard(root, "train/000000", [Sample(key, half, half, {}) for key in keys])] if keys else []
    config = ShardConfig("out", geometry=GeometryConfig(high_shape=(12, 22, 20)))
    write_manifest(root, content_config(config), Addition([], entries), None)
    return root


@pytest.mark.parametrize("name", ["a.png", "a.html"])
def test_the_same_seed_gives_the_same_bytes(tiny_shards, tmp_path, run_cli, name):
    outs = [tmp_path / name, tmp_path / "deep" / name]
    for out in outs:
        code, said, _ = run_cli(main, tiny_shards, "--out", out, "--pairs", 3)
        assert code == 0
        assert "ixi synthetic 1, real real 1, real synthetic 1" in said
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert sorted(tmp_path.rglob("*.*")) == sorted(outs)


def test_eight_pairs_are_1600_pixels_wide(tiny_shards, tmp_path, run_cli):
    assert run_cli(main, tiny_shards, "--out", tmp_path / "grid.PNG")[0] == 0
    assert matplotlib.image.imread(tmp_path / "grid.PNG", format="png").shape[1] == 1600


@pytest.mark.parametrize("name", ["a.png", "a.html"])
def test_each_overlay_gives_a_different_picture(tiny_shards, tmp_path, run_cli, name):
    pictures = set()
    for overlay in ("contour", "checkerboard", "none"):
        assert run_cli(main, tiny_shards, "--out", tmp_path / name, "--pairs", 3, "--overlay", overlay)[0] == 0
        pictures.add((tmp_path / name).read_bytes())
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "grid.jpg"], "must end in .png (a picture) or .html (sliders), found grid.jpg"),
        (["--out", "grid"], "must end in .png (a picture) or .html (sliders), found grid"),
        (["--out", "grid.png", "--pairs", "0"], "expected at least 1, found 0"),
        (["--out", "grid.png", "--pairs", "999"], "expected at most 80 in a .png file, found 999"),
        (["--out", "grid.html", "--pairs", "80"], "expected at most 24 in a .html file, found 80"),
        (["--out", "grid.png", "--overlay", "blink"], "overlay"),
        ([], "--out is missing"),
    ],
)
def test_previews_that_cannot_be_drawn_are_refused(tiny_shards, tmp_path, monkeypatch, run_cli, flags, message):
    monkeypatch.chdir(tmp_path)
    code, _, said = run_cli(main, tiny_shards, *flags)
    assert code == 2
    assert message in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["grid.png", "grid.html"])
def test_empty_splits_and_foreign_keys_are_refused(tmp_path, run_cli, name):
    empty, foreign = (
        write_foreign(tmp_path / folder, keys) for folder, keys in (("a", []), ("b", ["a-b-real-0-x000"]))
    )
    index = as_by_an_earlier_version(foreign) / "train/000000.idx"
    index.write_text(index.read_text().replace("a-b-real-0-x000", "000017"))
    for shards, message in (
        (empty, "split train has no samples. Choose another --split."),
        (foreign, "expected a key like cohort-subject-kind-variant-x090, found '000017'"),
    ):
        code, _, said = run_cli(main, shards, "--out", tmp_path / name)
        assert code == 2
        assert message in said
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["grid.png", "grid.html"])
def test_slices_without_anatomy_are_drawn_if_there_are_no_others(tmp_path, run_cli, name):
    shards = write_foreign(tmp_path / "set", ["a-b-real-0-x000", "a-b-real-0-x001"])
    assert run_cli(main, shards, "--out", tmp_path / name)[0] == 0


@pytest.mark.parametrize("name", ["grid.png", "grid.html"])
def test_damaged_voxels_are_reported_and_not_drawn(tiny_shards, tmp_path, run_cli, name):
    shards = shutil.copytree(tiny_shards, tmp_path / "set")
    for tar in shards.glob("train/*.tar"):
        content = bytearray(tar.read_bytes())
        # The last two bytes of an array's voxels become a NaN.
        for line in tar.with_suffix(".idx").read_text().splitlines()[1:]:
            offset, size = map(int, line.split()[1:3])
            content[offset + size - 2 : offset + size] = b"\xff\x7f"
        tar.write_bytes(content)
    code, _, said = run_cli(main, shards, "--out", tmp_path / name)
    assert code == 2
    assert f"{shards}: " in said
    assert "has values outside 0..1, so a shard is damaged. Run upfield verify." in said
    assert not (tmp_path / name).exists()


def test_the_error_names_an_output_path_that_cannot_be_written(tiny_shards, run_cli):
    code, _, said = run_cli(main, tiny_shards, "--out", "/proc/grid.png")
    assert code == 2
    assert "/proc/grid.png: " in said


def test_a_missing_set_is_refused(tmp_path, run_cli):
    code, _, said = run_cli(main, tmp_path / "none", "--out", tmp_path / "grid.png")
    assert code == 2
    assert "there is no shard set here" in said


@pytest.mark.parametrize("name", ["grid.png", "grid.html"])
def test_without_matplotlib_the_error_says_what_to_install(tiny_shards, tmp_path, monkeypatch, run_cli, name):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, said = run_cli(main, tiny_shards, "--out", tmp_path / name)
    assert code == 2
    assert "pip install 'upfield[demo]'" in said
