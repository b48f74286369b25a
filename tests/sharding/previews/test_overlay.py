import numpy as np
import pytest

from upfield.sharding.previews.overlay import draw_overlay, find_edges, find_tiles


def draw_disc(middle, radius=16.0, shape=(64, 56)):
    """Return a smooth disc `(Y, Z)` in 0..0.9, and the distance of each voxel from its rim."""
    places = np.indices(shape)
    distance = np.hypot(*(place - m for place, m in zip(places, middle, strict=True))) - radius
    return 0.9 / (1 + np.exp(distance)), distance


def test_edges_lie_on_the_rim_all_around_it():
    disc, distance = draw_disc((32, 28))
    edges = find_edges(disc)
    assert np.abs(distance[edges]).max() < 1.5
    assert edges.sum() > 2 * np.pi * 16 * 0.9


def test_noise_has_no_edges():
    assert not find_edges(0.05 * np.random.default_rng(0).random((64, 56))).any()


@pytest.mark.parametrize("kind", ["contour", "checkerboard"])
def test_a_shift_of_three_voxels_changes_the_overlay(kind):
    still, moved = (draw_overlay(kind, draw_disc(middle)[0]) for middle in ((32, 28), (32, 31)))
    seen = (still != moved).any(axis=-1) & (np.maximum(still[..., 3], moved[..., 3]) > 0)
    assert seen.sum() > 50


@pytest.mark.parametrize("kind", ["contour", "checkerboard"])
def test_overlays_move_with_the_high_field_and_let_the_low_field_through(kind):
    overlay = draw_overlay(kind, draw_disc((32, 28))[0])
    assert overlay.shape == (64, 56, 4)
    assert set(np.unique(overlay[..., 3])) == {0, 255}
    assert (overlay[..., 3] == 0).mean() > 0.4


def test_tiles_alternate_eight_to_the_longer_side():
    tiles = find_tiles((64, 56))
    assert (tiles[::8, ::8] == (np.indices((8, 7)).sum(0) % 2 == 1)).all()
    assert (tiles[:8, :8] == tiles[0, 0]).all()


def test_tiles_show_the_high_field():
    high = np.random.default_rng(0).random((64, 56))
    tiles = find_tiles(high.shape)
    assert np.abs(draw_overlay("checkerboard", high)[tiles][:, 0] / 255 - high[tiles]).max() <= 0.5 / 255 + 1e-9
