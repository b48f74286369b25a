"""Air is found behind fill values, undershoot, offsets and noise, and doubted where it cannot be found."""

import numpy as np
import pytest
from heads import HEAD_SHAPE as SHAPE
from heads import radius
from heads import whole_head as head
from numpy.typing import NDArray
from scipy import ndimage

from upfield.imaging.air import estimate_air, raise_to_air
from upfield.imaging.volume import Volume


def scattered(value: float, share: float) -> NDArray[np.float32]:
    voxels = head()
    voxels[np.random.default_rng(1).random(SHAPE) < share] = value
    return voxels


def in_circle(voxels: NDArray[np.float32], outside: float) -> NDArray[np.float32]:
    x, y = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    return np.where((x**2 + y**2 < 1)[:, :, None], voxels, np.float32(outside))


def corner(value: float) -> NDArray[np.float32]:
    voxels = head()
    voxels[0, 0, 0] = value
    return voxels


@pytest.mark.parametrize(
    "voxels",
    [corner(-32767), corner(-1), scattered(-32767, 0.05), in_circle(head(), -1024), in_circle(head(), -300)],
    ids=["one voxel", "one voxel just below air", "many voxels", "outside a circle", "not far below air"],
)
def test_fill_values_are_not_air(voxels: NDArray[np.float32]):
    air = estimate_air(voxels)
    assert air.doubt is None
    assert -20 < air.darkest < 1
    assert air.padding == air.darkest
    assert raise_to_air(Volume(voxels, np.eye(4)), air).voxels.min() == air.darkest


def test_one_dark_voxel_changes_nothing_but_itself():
    clean, dark = estimate_air(head()), estimate_air(corner(-32767))
    assert dark.darkest == pytest.approx(clean.darkest, abs=0.1)
    assert dark.threshold == pytest.approx(clean.threshold, rel=0.01)


@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_undershoot_of_an_earlier_interpolation_is_not_air(noise: float):
    moved = np.asarray(ndimage.shift(head(noise), (0.4, 0.3, 0.5), order=3, mode="nearest"), dtype=np.float32)
    air = estimate_air(moved)
    assert moved.min() < -100
    assert -2 * noise - 1e-3 < air.darkest < 0
    assert air.doubt is None


@pytest.mark.parametrize(("scale", "offset"), [(1.0, -1000.0), (0.001, 5.0), (30.0, -32768.0)])
def test_scale_and_offset_move_the_estimate_with_them(scale: float, offset: float):
    plain, moved = estimate_air(head()), estimate_air((scale * head() + offset).astype(np.float32))
    for name in ("level", "darkest", "threshold"):
        expected = scale * getattr(plain, name) + offset
        assert getattr(moved, name) == pytest.approx(expected, abs=scale), name


@pytest.mark.parametrize("fill", [0, 1])
def test_empty_margins_do_not_matter(fill: int):
    voxels = head()
    wide = np.pad(voxels, 30) if fill == 0 else np.pad(voxels, 30, mode="wrap")[:, 30:-30, 30:-30]
    plain, padded = estimate_air(voxels), estimate_air(wide)
    assert padded.darkest == pytest.approx(plain.darkest, abs=0.1)
    assert padded.threshold == pytest.approx(plain.threshold, rel=0.03)


@pytest.mark.parametrize(
    "voxels",
    [
        np.rint(head() / 140),
        head()[:, :, 22:26],
        head()[12:28],
        head()[3:-3, 3:-3, 3:-3],
        head()[::2, ::2, ::8],
        np.where(radius() < 0.7, head(), 0),
        np.where(radius() < 0.3, 900, 0) + np.random.default_rng(0).normal(0, 60, SHAPE),
    ],
    ids=["8 levels", "thin slab", "cut at the sides", "no margin", "thick slices", "no skull", "noise of both signs"],
)
def test_ordinary_volumes_are_not_doubted(voxels: NDArray[np.floating]):
    air = estimate_air(voxels.astype(np.float32))
    assert air.doubt is None
    assert air.level < air.threshold < 300


def bright_background() -> NDArray[np.float32]:
    noise = np.random.default_rng(0).uniform(0, 1000, SHAPE)
    return np.where(radius() < 0.85, head(), noise).astype(np.float32)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (bright_background(), "is nearly as bright as the head"),
        (1000 - head(), "is nearly as bright as the head"),
        (np.pad(head() - 1000, 8), "is nearly as bright as the head"),
        (np.where(radius() < 0.7, (head() - 500) / 100, 0), "darker than its border|nearly as"),
        (head()[12:-12, 13:-13, 14:-14], "."),
    ],
    ids=["MP2RAGE", "inverted", "zeros around a negative offset", "standardised brain", "inside the head"],
)
def test_air_that_cannot_be_told_from_the_head_is_doubted(voxels: NDArray[np.float32], message: str):
    voxels = voxels.astype(np.float32)
    air = estimate_air(voxels)
    assert air.doubt is not None
    assert np.any([part in air.doubt for part in message.split("|")])
    assert air.padding == air.level
    assert raise_to_air(Volume(voxels, np.eye(4)), air).voxels.min() == voxels.min()
