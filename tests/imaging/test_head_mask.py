"""The head mask covers the whole head and nothing else."""

import numpy as np
from numpy.typing import NDArray

from upfield.imaging.head_mask import head_mask


def ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    places = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in shape), indexing="ij")
    return np.sqrt(sum(np.square(place) for place in places)) < radius


def draw(shape: tuple[int, int, int] = (41, 45, 50)) -> NDArray[np.float32]:
    """Return a bright shell around a dark skull and a brain larger than the shell, with faint noise, `(X, Y, Z)`."""
    rng = np.random.default_rng(0)
    image = np.where(ball(shape, 18), 0.9, 0.0) - 0.85 * ball(shape, 15.5) + 0.5 * ball(shape, 13.5)
    return np.clip(image + 0.02 * np.abs(rng.standard_normal(shape)), 0, 1).astype(np.float32)


def test_a_head_is_filled_to_its_skin():
    image = draw()
    head, truth = head_mask(image), ball(image.shape, 18)
    assert head.shape == image.shape
    assert 2 * (head & truth).sum() / (head.sum() + truth.sum()) > 0.95
    assert head[ball(image.shape, 16)].all()


def test_a_bright_spot_beside_the_head_is_excluded():
    image = draw()
    image[:4, :4, :4] = 1
    assert not head_mask(image)[:4, :4, :4].any()


def test_a_head_that_is_cut_off_reaches_the_border():
    image = draw()[:, :, :25]
    assert head_mask(image)[20, 22, -1]
    assert head_mask(image)[20, 6, -1]


def test_scale_does_not_matter():
    image = draw()
    assert np.array_equal(head_mask(image), head_mask(np.float32(0.5) * image))


def test_a_constant_volume_has_an_empty_mask():
    assert not head_mask(np.full((7, 8, 9), 0.3, dtype=np.float32)).any()
