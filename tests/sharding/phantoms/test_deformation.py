import numpy as np
import pytest

from upfield.sharding.phantoms.anatomy import LEAST_JACOBIAN, TemplateGrid
from upfield.sharding.phantoms.deformation import draw_deformation

GRID = TemplateGrid((45, 56, 50), (4.0, 4.0, 4.0))


def draw(seed=0, fine_rms_mm=1.0, **changes):
    settings = {"coarse_rms_mm": 4.0, "rotation_deg": (0, 0, 0), "scale": (1, 1, 1), "mirrored": False} | changes
    return draw_deformation(np.random.default_rng(seed), GRID, fine_rms_mm=fine_rms_mm, **settings)


def displacement(deformation, step_mm):
    """Return places along each axis and the displacement `(3, A, B, C)` there."""
    places = [np.arange(-60, 60.1, step_mm) for _ in range(3)]
    bases = [deformation.bases(axis, each) for axis, each in enumerate(places)]
    return np.einsum("ai,bj,ck,dijk->dabc", *bases, deformation.knots_mm, optimize=True)


@pytest.mark.parametrize("fine_rms_mm", [0.5, 2.0, 20.0])
def test_deformations_have_no_fold(fine_rms_mm):
    field = displacement(draw(fine_rms_mm=fine_rms_mm), 2.0)
    gradient = np.stack([np.stack(np.gradient(each, 2.0), axis=-1) for each in field], axis=-2) + np.eye(3)
    assert np.linalg.det(gradient).min() > 0.6 * LEAST_JACOBIAN


def test_the_least_jacobian_is_that_of_small_steps():
    deformation = draw(fine_rms_mm=1.5)
    field = displacement(deformation, 2.0)
    gradient = np.stack([np.stack(np.gradient(each, 2.0), axis=-1) for each in field], axis=-2) + np.eye(3)
    # The middle of the grid is compared with all of it.
    assert deformation.least_jacobian() < np.linalg.det(gradient).min() + 0.03
    assert deformation.least_jacobian() > LEAST_JACOBIAN


def test_the_displacement_has_the_stated_size():
    field = displacement(draw(fine_rms_mm=0.0), 4.0)
    assert np.sqrt(np.mean(field**2)) == pytest.approx(4.0, rel=0.3)


def test_mirroring_exchanges_right_and_left():
    assert np.allclose(draw(mirrored=True).matrix, np.diag([-1, 1, 1]))
    assert np.allclose(draw(scale=(2, 2, 2)).matrix, np.eye(3) / 2)
