import io

import matplotlib.image
import numpy as np
import pytest

from upfield.sharding.previews.contact_sheet import (
    CAPTION_IN,
    COLUMN_IN,
    GAP_IN,
    LABEL_IN,
    MARGIN_IN,
    TITLE_IN,
    draw_histograms,
    draw_sheet,
)
from upfield.sharding.previews.selection import Group, Slice
from upfield.sharding.shardset.sample_key import SampleKey


def make_group(num_shown, context=0, shift=0, kind="real"):
    rng = np.random.default_rng(0)
    slices = []
    for x in range(3):
        high = np.zeros((44, 40), np.float32)
        high[12 + shift : 30 + shift, 10:30] = 0.3 + 0.6 * rng.random((18, 20))
        low = np.repeat(np.float32(0.5) * np.roll(high, -shift, axis=0)[None], 1 + 2 * context, axis=0)
        slices.append(Slice(SampleKey("a", f"sub-{x}", kind, 0, x), low, high))
    return Group("a", kind, slices[:num_shown], slices)


def decode(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")


def height(group, overlay="contour"):
    return decode(draw_sheet([group], "title", overlay)).shape[0]


def test_neighbours_are_drawn_too():
    assert height(make_group(3)) < height(make_group(3, context=2))


def test_the_overlay_has_its_own_row():
    assert height(make_group(3), "none") < height(make_group(3), "contour") == height(make_group(3), "checkerboard")


@pytest.mark.parametrize("overlay", ["contour", "checkerboard"])
def test_a_shifted_high_field_looks_different_over_the_same_low_field(overlay):
    pictures = [decode(draw_sheet([make_group(1, shift=shift)], "title", overlay)) for shift in (0, 4)]
    image_in = COLUMN_IN * 40 / 44
    top_in = TITLE_IN + LABEL_IN + CAPTION_IN + 2 * (image_in + GAP_IN)
    still, moved = (picture[round(100 * top_in) : round(100 * (top_in + image_in))] for picture in pictures)
    assert (still != moved).any(axis=-1).sum() > 200


def test_slices_face_left():
    group = make_group(1)
    high = np.zeros((44, 40), np.float32)
    high[-16:, -12:] = 1  # anterior and superior
    shown = [Slice(group.shown[0].key, high[None], high)]
    picture = decode(draw_sheet([Group("a", "real", shown, shown)], "title", "none"))[..., :3].max(axis=-1)
    top, left = round(100 * (TITLE_IN + LABEL_IN + CAPTION_IN)), round(100 * MARGIN_IN)
    wide, tall = round(100 * COLUMN_IN), round(100 * COLUMN_IN * 40 / 44)
    image = picture[top : top + tall, left : left + wide]
    assert (image[: tall // 4, : wide // 3] > 0.8).mean() > 0.9
    assert image[tall // 2 :].max() < 0.1
    # Only the letter P is to the right of the block.
    assert 0 < (image[:, wide // 2 :] > 0.5).mean() < 0.02


def test_a_picture_is_at_most_eight_columns_wide():
    widths = [decode(draw_sheet([make_group(3)] * times, "title", "none")).shape[1] for times in (1, 3)]
    assert widths == [816, 1012]


def test_a_group_without_pairs_still_has_its_histogram():
    groups = [make_group(1), make_group(0, kind="synthetic")]
    both, alone = (draw_sheet(shown, "$\\broken{ mathematics $", "none") for shown in (groups, groups[:1]))
    assert both.startswith(b"\x89PNG")
    assert both != alone


def test_histograms_are_drawn_without_slices_with_anatomy():
    empty = Group("a", "real", [], [])
    assert draw_histograms([empty]).startswith(b"\x89PNG")
    assert draw_histograms([empty, make_group(0)]) != draw_histograms([empty, empty])
