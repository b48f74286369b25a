import base64
import io
import json
import re
import sys
from html import unescape

import numpy as np
import pytest
from PIL import Image, features

from upfield.common.errors import InputError
from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.previews.selection import choose_volumes, read_slice
from upfield.sharding.previews.slider import draw_slider, encode_webp
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.shard_writer import Sample, write_shard
from upfield.sharding.shardset.volume_pairs import read_keys

PNG = b"\x89PNG of histograms"


@pytest.fixture(scope="module")
def split(tiny_shards):
    return ShardSplit(tiny_shards, "train")


@pytest.fixture(scope="module")
def pairs(split):
    return choose_volumes(split, 5, 0)


@pytest.fixture(scope="module")
def page(split, pairs):
    return draw_slider(split, pairs, "title", "contour", PNG)


def data_of(page):
    (data,) = re.findall(r'<script type="application/json" id="slices">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def decode(data, number):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data["images"][number]))))


def slices_of(page):
    return [[piece for piece in pair if piece] for subject in data_of(page)["subjects"] for pair in subject["pairs"]]


def test_the_page_holds_every_slice_of_the_chosen_volumes_once_in_order(page, pairs):
    keys = [[piece["key"] for piece in pair] for pair in slices_of(page)]
    assert keys == [list(map(str, pair.keys)) for pair in pairs]
    assert all(len(slices) == 20 for slices in keys)


def test_images_are_the_samples_the_right_way_up(page, pairs, split):
    data, pieces = data_of(page), slices_of(page)[0]
    item = read_slice(split, pairs[0].samples[9])
    for field, image in (("low", item.centre), ("high", item.high)):
        shown = decode(data, pieces[9][field])[..., 0] / 255
        expected = image[::-1, ::-1].T
        assert shown.shape == expected.shape
        assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.97


def test_the_low_field_stays_visible_behind_the_edges(page):
    data = data_of(page)
    alpha = decode(data, slices_of(page)[0][9]["overlay"])[..., 3]
    assert 0 < (alpha > 0).mean() < 0.5
    assert page.count('<img class="low"') == 2 * page.count('<img class="overlay"') == 10


def test_equal_images_are_embedded_once(page):
    data = data_of(page)
    assert len(set(data["images"])) == len(data["images"])
    real, synthetic = next(subject["pairs"] for subject in data["subjects"] if len(subject["pairs"]) == 2)
    assert [piece["high"] for piece in real] == [piece["high"] for piece in synthetic]
    assert [piece["low"] for piece in real] != [piece["low"] for piece in synthetic]


def test_real_and_synthetic_pairs_of_a_subject_are_side_by_side(page):
    sections = re.findall(r'<section class="subject">(.*?)</section>', page, re.DOTALL)
    kinds = [re.findall(r'<span class="kind"[^>]*>(\w+)</span>', section) for section in sections]
    assert ["real", "synthetic"] in kinds
    assert [len(kind) for kind in kinds] == [len(subject["pairs"]) for subject in data_of(page)["subjects"]]


def test_the_page_loads_nothing_else(page):
    assert "default-src 'none'" in page
    outside = re.findall(r"https?:|//\w|@import|url\(", re.sub(r'"images":\[.*?\]', "", page))
    assert not outside
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert base64.b64encode(PNG).decode() in page


@pytest.mark.parametrize("overlay", ["checkerboard", "none"])
def test_the_requested_overlay_is_drawn(split, pairs, overlay):
    page = draw_slider(split, pairs[:1], "title", overlay, PNG)
    assert ("tiles of the high field" in page) == (overlay == "checkerboard")
    assert ("overlay" in slices_of(page)[0][0]) == (overlay == "checkerboard")
    assert page.count("<figure>") == (2 if overlay == "none" else 3)


def test_slices_face_left_and_the_letters_say_so(page):
    corner = np.zeros((22, 20), np.uint8)
    corner[-8:, -6:] = 255  # anterior and superior
    shown = np.asarray(Image.open(io.BytesIO(encode_webp(corner))).convert("L"))
    assert shown[:4, :6].min() > 200
    assert shown[8:].max() < 50 > shown[:, 10:].max()
    assert page.count('<span aria-hidden="true">A</span><span aria-hidden="true">P</span>') == page.count("<figure>")


@pytest.fixture
def strange(tmp_path):
    """A set whose subject has a name that no path pattern would match, and whose second pair lacks a slice."""
    subject = "</script><b>'&amp;\""
    blank = np.zeros((1, 22, 20), np.float16)
    keys = [f"a-{subject}-{kind}-0-x{x:03d}" for kind, x in (("real", 4), ("synthetic", 5), ("real", 5))]
    entry = write_shard(tmp_path / "set", "train/000000", [Sample(key, blank, blank, {}) for key in keys])
    config = ShardConfig("out", geometry=GeometryConfig(high_shape=(12, 22, 20)))
    write_manifest(tmp_path / "set", content_config(config), Addition([], [entry]), None)
    return ShardSplit(tmp_path / "set", "train"), subject


def test_keys_cannot_break_out_of_the_page(strange):
    split, subject = strange
    page = draw_slider(split, choose_volumes(split, 2, 0), f"<i>{subject}", "contour", PNG)
    assert subject not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert [unescape(heading) for heading in re.findall(r"<h2>(.*)</h2>", page)] == [f"a, {subject}"]
    assert {piece["key"] for pair in slices_of(page) for piece in pair} == {str(key) for key in read_keys(split)}


def test_a_slice_missing_from_one_pair_keeps_the_others_aligned(strange):
    split, _ = strange
    (subject,) = data_of(draw_slider(split, choose_volumes(split, 2, 0), "title", "none", PNG))["subjects"]
    assert subject["x"] == [4, 5]
    assert [[piece and piece["key"][-4:] for piece in pair] for pair in subject["pairs"]] == [
        ["x004", "x005"],
        [None, "x005"],
    ]


def test_without_webp_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(InputError, match="The installed Pillow cannot write WebP"):
        encode_webp(np.zeros((22, 20), np.uint8))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'upfield\[demo\]'"):
        encode_webp(np.zeros((22, 20), np.uint8))
