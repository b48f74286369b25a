import numpy as np
import pytest
from head_maps import SPACING_MM, label_volume
from scipy import ndimage

from upfield.sharding.phantoms.anatomy import TemplateGrid
from upfield.sharding.phantoms.deformation import draw_deformation
from upfield.sharding.phantoms.label_map import make_label_map
from upfield.sharding.phantoms.label_sampling import sample_classes

GRID = TemplateGrid((45, 56, 50), (SPACING_MM, SPACING_MM, SPACING_MM))


@pytest.fixture(scope="module")
def label_map():
    return make_label_map(label_volume(), "map", {})


def deform(coarse_rms_mm=0.0, rotation_deg=(0, 0, 0), grid=GRID):
    return draw_deformation(
        np.random.default_rng(0),
        grid,
        coarse_rms_mm=coarse_rms_mm,
        fine_rms_mm=0.0,
        rotation_deg=rotation_deg,
        scale=(1, 1, 1),
        mirrored=False,
    )


def middle_mm(label_map):
    return (np.array(label_map.classes.shape) - 1) / 2 * SPACING_MM


def test_without_deformation_the_map_itself_is_found(label_map):
    centres = sample_classes(
        label_map, TemplateGrid(label_map.classes.shape, GRID.spacing_mm), deform(), middle_mm(label_map)
    ).centres
    assert np.array_equal(centres, label_map.classes)


def test_the_classes_are_those_of_a_slow_interpolation(label_map):
    deformation, anchor_mm = deform(4.0, (5, -8, 10)), middle_mm(label_map) + 3
    found = sample_classes(label_map, GRID, deformation, anchor_mm).centres
    places = np.stack(np.meshgrid(*(GRID.positions_mm(axis) for axis in range(3)), indexing="ij"))
    bases = [deformation.bases(axis, GRID.positions_mm(axis)) for axis in range(3)]
    places = places + np.einsum("ai,bj,ck,dijk->dabc", *bases, deformation.knots_mm, optimize=True)
    index = (np.tensordot(deformation.matrix, places, axes=1) + anchor_mm[:, None, None, None]) / SPACING_MM
    expected = ndimage.map_coordinates(label_map.classes, index, order=0, mode="nearest")
    # Places are rounded to a 64th of a voxel.
    assert np.mean(found == expected) > 0.99


def test_only_voxels_at_borders_get_several_samples(label_map):
    sampling = sample_classes(label_map, GRID, deform(4.0, (3, 3, 3)), middle_mm(label_map))
    several = (sampling.samples != sampling.samples[0]).any(axis=0)
    assert several.mean() > 0.2
    assert len(sampling.edges) < 0.6 * sampling.centres.size


def test_samples_show_the_share_of_each_class_in_a_voxel(label_map):
    sampling = sample_classes(label_map, GRID, deform(rotation_deg=(0, 0, 7)), middle_mm(label_map))
    brain = np.array([kind.structure.is_brain for kind in label_map.kinds])
    share = brain[sampling.centres].astype(float)
    share.reshape(-1)[sampling.edges] = brain[sampling.samples].mean(axis=0)
    expected = np.count_nonzero(np.isin(label_volume().voxels, (2, 41, 3, 42, 4, 43)))
    assert share.sum() == pytest.approx(expected, rel=0.005)


def test_a_map_finer_than_the_grid_gets_more_samples(label_map):
    coarse = TemplateGrid((12, 14, 13), (16.0, 16.0, 16.0))
    assert len(sample_classes(label_map, coarse, deform(grid=coarse), middle_mm(label_map)).samples) == 64
