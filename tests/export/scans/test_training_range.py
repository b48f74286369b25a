"""A scan gets the values that it would have in a shard set, whatever margins, unit or fill values its file has."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from heads import GEOMETRY, SHAPE, SPACING_MM, draw, model_card, scan_affine, whole_head
from hypothesis import example, given
from hypothesis import strategies as st

from upfield.export.scans.scan import prepare, prepare_volume, training_range
from upfield.imaging.air import estimate_air, raise_to_air
from upfield.imaging.header import read_header
from upfield.imaging.volume import Volume
from upfield.sharding.building.pairs import make_pairs
from upfield.sharding.cohorts.preflight import preflight
from upfield.sharding.cohorts.subjects import Source, Subject
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.shardset.sample_key import Unit

# A head of 160 x 176 x 192 mm, in a box that is somewhat larger.
VOXEL_MM = 4.0
HEAD_GEOMETRY = GeometryConfig((56, 69, 20), (3.2, 3.2, 10.0), (45, 55, 50), (4.0, 4.0, 4.0))
HEAD = whole_head()


def intensities(voxels: np.ndarray) -> np.ndarray:
    volume = Volume(voxels.astype(np.float32), np.diag([VOXEL_MM] * 3 + [1.0]))
    air = estimate_air(volume.voxels)
    assert air.doubt is None
    return np.array(training_range(raise_to_air(volume, air), air, HEAD_GEOMETRY, "head"))


RANGE = intensities(HEAD)


@pytest.mark.generated
@given(
    margins=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=3, max_size=3),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-30, 30),
    fills=st.sampled_from([0, 1, 2, 300]),
    fill=st.floats(-1e5, -20),
    seed=st.integers(0, 2**16),
)
@example([(12, 12)] * 3, 1.0, 0.0, 0, -1.0, 0)
@example([(0, 0)] * 3, 1.0, 0.0, 1, -32767.0, 0)
@example([(0, 0)] * 3, 1.0, -1.0, 300, -2000.0, 0)
def test_margins_unit_and_fill_values_do_not_change_intensities(
    margins: list[tuple[int, int]], scale: float, offset: float, fills: int, fill: float, seed: int
) -> None:
    voxels = HEAD.copy()
    voxels.ravel()[np.random.default_rng(seed).choice(voxels.size, fills, replace=False)] = fill
    found = intensities(np.pad(voxels, margins) * scale + 1000 * offset * scale)
    np.testing.assert_allclose(found / scale - 1000 * offset, RANGE, atol=0.015 * np.ptp(RANGE))


def test_empty_margins_change_no_value(tmp_path: Path) -> None:
    inputs = []
    for name, margin in (("tight", 0), ("wide", 9)):
        affine = np.diag([VOXEL_MM] * 3 + [1.0])
        affine[:3, 3] = -VOXEL_MM * margin
        nib.Nifti1Image(np.pad(HEAD, margin), affine).to_filename(tmp_path / f"{name}.nii")
        inputs.append(prepare(tmp_path / f"{name}.nii", model_card(HEAD_GEOMETRY), name))
    tight, wide = inputs
    start = int(VOXEL_MM) * 9
    inner = tuple(slice(start, start + size) for size in tight.low.shape)
    # Interpolation mirrors at the border of the field of view.
    centre = (slice(8, -8),) * 3
    np.testing.assert_allclose(wide.low[inner][centre], tight.low[centre], atol=0.01)


def test_a_scan_has_the_values_of_its_pair_in_a_shard_set(tmp_path: Path) -> None:
    affine = scan_affine()[0]
    low = 50 * draw(SHAPE, affine)
    high = draw(GEOMETRY.high_shape, np.array([[1, 0, 0, -18.5], [0, 1, 0, -2], [0, 0, 1, -14.5], [0, 0, 0, 1]]))
    for name, voxels, spacing in (("low", low, SPACING_MM), ("high", high, (1.0, 1.0, 1.0))):
        placed = np.diag((*spacing, 1.0))
        placed[:3, 3] = np.array([0, 20, 10]) - placed[:3, :3] @ (np.array(voxels.shape) - 1) / 2
        nib.Nifti1Image(voxels, placed).to_filename(tmp_path / f"{name}.nii")
    sources = [Source((tmp_path / f"{name}.nii",), stacked=False) for name in ("high", "low")]
    unit = Unit("a", "1", "real", 0)
    subject = Subject("a", "1", "1", "train", sources[0], sources[1], "crop_pad", (unit,))
    (checked,) = preflight([subject]).subjects
    (pair,) = make_pairs(checked, ShardConfig("out", geometry=GEOMETRY)).pairs
    prepared = prepare(tmp_path / "low.nii", model_card(), "low")
    np.testing.assert_array_equal(prepared.low.astype(np.float16), pair.low)


def test_air_that_cannot_be_told_from_the_head_is_a_doubt_of_the_scan(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(0, 1000, HEAD.shape)
    voxels = np.where(HEAD > 100, HEAD, noise).astype(np.float32)
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    nib.Nifti1Image(voxels, affine).to_filename(tmp_path / "mp2rage.nii")
    header = read_header(tmp_path / "mp2rage.nii")
    notes = prepare_volume(Volume(voxels, affine), header, model_card(HEAD_GEOMETRY), "scan").notes
    assert any("nearly as bright as the head" in note for note in notes)
