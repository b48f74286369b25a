import json
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from upfield.common.errors import InputError
from upfield.imaging.volume import Volume
from upfield.sharding.building.align import Alignment, register, resample_aligned
from upfield.sharding.shardset.manifest import MIN_SIMILARITY, Manifest

sitk = pytest.importorskip("SimpleITK")

# Centre mm, half axes mm, and brightness in the high and in the low field. No two halves of this head are equal.
PARTS = (
    ((0, 0, 0), (54, 75, 62), 0.5, 0.7),
    ((4, -3, 6), (40, 60, 50), 0.4, -0.3),
    ((-18, 22, 12), (14, 18, 12), -0.5, 0.4),
    ((22, 10, -14), (12, 16, 18), 0.4, -0.2),
    ((-12, -34, -10), (20, 12, 14), -0.4, 0.2),
    ((14, -26, 26), (10, 14, 10), -0.5, 0.3),
    ((0, 70, -22), (12, 16, 14), 0.6, 0.6),
)
SIZE_HIGH, SIZE_LOW = (60, 70, 60), (48, 54, 25)


def affine(spacing_mm, shape, turned_deg=(0.0, 0.0, 0.0), centre_mm=(0.0, 0.0, 0.0)):
    result = np.eye(4)
    result[:3, :3] = Rotation.from_rotvec(turned_deg, degrees=True).as_matrix() * spacing_mm
    result[:3, 3] = centre_mm - result[:3, :3] @ ((np.array(shape) - 1) / 2)
    return result


def motion(turned_deg, moved_mm):
    return affine((1.0, 1.0, 1.0), (1, 1, 1), turned_deg, moved_mm)


def world_mm(shape, to_world):
    return np.moveaxis(np.indices(shape), 0, -1) @ to_world[:3, :3].T + to_world[:3, 3]


def head(points_mm, field):
    """A smooth head about the world's origin in one field, defined at any point, so that nothing is interpolated."""
    total = np.zeros(points_mm.shape[:-1])
    for centre, half_axes, *brightness in PARTS:
        radius = np.linalg.norm((points_mm - centre) / half_axes, axis=-1)
        edge_mm = (radius - 1) * min(half_axes)
        total += brightness[field == "low"] / (1 + np.exp(np.clip(edge_mm / 1.5, -50, 50)))
    return total.astype(np.float32)


def low_field(turned_deg=(0.0, 0.0, 0.0)):
    to_world = affine((3.2, 3.2, 6.0), SIZE_LOW, turned_deg)
    noise = np.random.default_rng(1).normal(0, 0.02, SIZE_LOW).astype(np.float32)
    return Volume(head(world_mm(SIZE_LOW, to_world), "low") + noise, to_world)


def high_field(moved=None):
    """The head after the motion `moved`, on a grid that follows only a part of the motion."""
    moved = np.eye(4) if moved is None else moved
    to_world = affine((2.5, 2.5, 2.5), SIZE_HIGH, centre_mm=moved[:3, 3])
    points_mm = world_mm(SIZE_HIGH, np.linalg.inv(moved) @ to_world)
    return Volume(1000 * head(points_mm, "high"), to_world)


def still(matrix=None):
    matrix = np.eye(4) if matrix is None else matrix
    return Alignment(tuple(map(tuple, matrix.tolist())), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, 1.0)


def interior(points_mm):
    """Mask of the head, well inside both fields of view."""
    return np.linalg.norm(points_mm / (54, 75, 62), axis=-1) < 1.1


@pytest.mark.parametrize(
    ("turned_deg", "moved_mm"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((9.0, -7.0, 8.0), (12.0, -20.0, 9.0)),
        ((-5.0, 4.0, 12.0), (-150.0, 210.0, 400.0)),
    ],
)
def test_a_known_motion_is_found(turned_deg, moved_mm):
    moved = motion(turned_deg, moved_mm)
    alignment = register(low_field(), high_field(moved), seed=0)
    left_over = np.array(alignment.matrix) @ moved
    assert np.linalg.norm(Rotation.from_matrix(left_over[:3, :3]).as_rotvec(degrees=True)) < 0.5
    assert np.linalg.norm(left_over[:3, 3]) < 0.5
    assert alignment.similarity_after > MIN_SIMILARITY
    np.testing.assert_allclose(alignment.rotation_deg, np.negative(turned_deg), atol=0.5)
    # The head's centre is near the world's origin, but the rotation is not about the centre.
    np.testing.assert_allclose(alignment.translation_mm, np.negative(moved_mm), atol=2)
    assert alignment.similarity_after >= alignment.similarity_before


def test_the_motion_is_relative_to_the_position_of_the_low_field():
    low, moved = low_field(turned_deg=(6.0, 0.0, -4.0)), motion((0.0, 5.0, 0.0), (8.0, 0.0, -6.0))
    left_over = np.array(register(low, high_field(moved), seed=0).matrix) @ moved
    np.testing.assert_allclose(left_over, np.eye(4), atol=0.5)


@pytest.fixture(scope="module")
def registered():
    """A pair, copies of its arrays, and its alignment."""
    low, high = low_field(), high_field(motion((8.0, 3.0, -6.0), (5.0, 15.0, 10.0)))
    kept = [array.copy() for volume in (low, high) for array in (volume.voxels, volume.affine)]
    return low, high, kept, register(low, high, seed=0)


def test_the_same_input_gives_the_same_bits_for_any_number_of_threads(registered):
    low, high, _, alignment = registered
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    first = resample_aligned(high, 0.0, alignment, low, "high")
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before + 2)
        again = register(low, high, seed=0)
        second = resample_aligned(high, 0.0, again, low, "high")
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before + 2
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert again == alignment
    np.testing.assert_array_equal(first.voxels, second.voxels)


def test_registration_raises_the_similarity_and_touches_neither_file(registered):
    low, high, kept, alignment = registered
    assert alignment.similarity_after > 2 * alignment.similarity_before
    resample_aligned(high, 0.0, alignment, low, "low")
    for array, copy in zip((low.voxels, low.affine, high.voxels, high.affine), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_similarity_of_a_volume_without_a_head_stays_low():
    noise = np.random.default_rng(0).standard_normal(SIZE_HIGH, dtype=np.float32)
    alignment = register(low_field(), Volume(noise, high_field().affine), seed=0)
    assert alignment.similarity_after < MIN_SIMILARITY
    assert alignment.similarity_after >= alignment.similarity_before


def test_tiny_volumes_do_not_fail():
    few = Volume(np.random.default_rng(0).random((7, 5, 3), dtype=np.float32), np.eye(4))
    assert register(few, few, seed=0).matrix


def test_the_record_is_plain_and_complete(registered):
    *_, alignment = registered
    tree = json.loads(json.dumps(alignment.to_tree()))
    rebuilt = Alignment(
        tuple(map(tuple, tree["matrix"])),
        tuple(tree["rotation_deg"]),
        tuple(tree["translation_mm"]),
        tree["similarity_before"],
        tree["similarity_after"],
    )
    assert rebuilt == alignment


def test_no_motion_on_the_same_grid_changes_nothing():
    high = high_field()
    for cover in ("low", "high"):
        moved = resample_aligned(high, 0.0, still(), high, cover)
        np.testing.assert_allclose(moved.voxels, high.voxels, atol=1e-3)
        np.testing.assert_allclose(moved.affine, high.affine, atol=1e-9)
        assert moved.voxels.dtype == np.float32


@pytest.mark.parametrize("cover", ["low", "high"])
def test_resampling_undoes_a_motion_wherever_the_low_field_lies(cover):
    moved = motion((9.0, -7.0, 8.0), (12.0, -20.0, 9.0))
    low, high = low_field(turned_deg=(7.0, -4.0, 10.0)), high_field(moved)
    found = resample_aligned(high, 0.0, still(np.linalg.inv(moved)), low, cover)
    points_mm = world_mm(found.voxels.shape, found.affine)
    inside = interior(points_mm)
    assert inside.sum() > 50_000
    difference = np.abs(found.voxels - 1000 * head(points_mm, "high"))[inside]
    assert difference.mean() < 2
    assert np.quantile(difference, 0.999) < 40


@pytest.mark.parametrize("cover", ["low", "high"])
def test_the_grid_is_parallel_to_the_low_field_at_the_high_fields_spacing(cover):
    low, high = low_field(turned_deg=(7.0, -4.0, 10.0)), high_field()
    found = resample_aligned(high, 0.0, still(), low, cover)
    np.testing.assert_allclose(found.spacing_mm, high.spacing_mm, rtol=0.02 if cover == "low" else 1e-9)
    axes = [volume.affine[:3, :3] / volume.spacing_mm for volume in (found, low)]
    np.testing.assert_allclose(axes[0], axes[1], atol=1e-9)


def test_covering_the_low_field_puts_corner_voxels_on_corner_voxels():
    low = low_field(turned_deg=(7.0, -4.0, 10.0))
    found = resample_aligned(high_field(), 0.0, still(), low, "low")
    for last in (0, 1):
        ends = [
            volume.affine[:3, :3] @ (last * (np.array(volume.voxels.shape) - 1)) + volume.affine[:3, 3]
            for volume in (low, found)
        ]
        np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)


def test_covering_the_high_field_loses_none_of_it():
    moved = motion((10.0, 0.0, 0.0), (5.0, 0.0, 0.0))
    high, low = Volume(np.full(SIZE_HIGH, 7, np.float32), high_field().affine), low_field()
    high.voxels[0, 0, 0] = 0
    found = resample_aligned(high, 0.0, still(moved), low, "high")
    assert np.prod(found.voxels.shape) > np.prod(SIZE_HIGH)
    np.testing.assert_allclose((found.voxels > 3.5).sum(), np.prod(SIZE_HIGH), rtol=0.01)
    corners = np.array(np.meshgrid(*((-0.5, size - 0.5) for size in SIZE_HIGH))).reshape(3, -1).T
    in_world = (moved @ high.affine)[:3] @ np.c_[corners, np.ones(8)].T
    index = np.linalg.inv(found.affine)[:3] @ np.vstack([in_world, np.ones(8)])
    assert (index >= -0.51).all()
    assert (index <= np.array(found.voxels.shape)[:, None] - 0.49).all()


def test_values_stay_in_the_range_and_outside_is_darkest():
    high = high_field()
    sharp = Volume(np.where(high.voxels > 400, 50, -20).astype(np.float32), high.affine)
    found = resample_aligned(sharp, -20.0, still(motion((10.0, 5.0, 0.0), (60.0, 0.0, 0.0))), low_field(), "low")
    assert found.voxels.min() == -20
    assert found.voxels.max() == 50
    assert (found.voxels[0] == -20).all()


def test_a_missing_simpleitk_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"needs SimpleITK, which is not installed.*pip install 'upfield\[align\]'"):
        register(low_field(), high_field(), seed=0)
    with pytest.raises(InputError, match="needs SimpleITK"):
        resample_aligned(high_field(), 0.0, still(), low_field(), "low")


def test_pairs_far_less_similar_than_the_others_of_their_cohort_are_named_too():
    def one(cohort, subject, similarity):
        return {"cohort": cohort, "subject": subject, "similarity_before": 0.1, "similarity_after": similarity}

    alike = [one("a", f"{number}", 1.9 + 0.1 * number) for number in range(3)]
    noisy = [one("b", f"{number}", 0.6 + 0.05 * number) for number in range(3)]
    others = [one("a", "another head", 0.63), one("b", "nothing at all", 0.3)]
    manifest = Manifest({"alignments": [*alike, others[0], *noisy, others[1]]})
    assert manifest.unlike_pairs == others
