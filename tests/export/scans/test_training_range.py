"""A scan gets the values that it would have in a shard set, whatever margins, unit or fill values its file has."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from heads import GEOMETRY, SHAPE, SPACING_MM, draw, model_card, scan_affine, whole_head
from hypothesis import example, given
from hypothesis import strategies as st

from upfield.common.errors import VolumeError
from upfield.export.scans.scan import OutputLayout, finish, prepare, prepare_volume, training_range
from upfield.imaging.air import estimate_air, raise_to_air
from upfield.imaging.header import read_header
from upfield.imaging.volume import Volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.pairs.subject_pairs import make_pairs
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
    volume = raise_to_air(volume, air)
    resampler = FieldResampler.around(HEAD_GEOMETRY, "crop_pad", volume, air)
    return np.array(training_range(volume, air, resampler, "head"))


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
    assert wide.shape == tuple(size + 2 * 9 * int(VOXEL_MM) for size in tight.shape)
    # The model gets the box of its training data in both cases, except for slices beside the field of view.
    assert wide.low.shape[1:] == tight.low.shape[1:] == (220, 200)
    first = tight.start[0] + 9 * int(VOXEL_MM) - wide.start[0]
    same = wide.low[first : first + len(tight.low)]
    # The noise at the border of the field of view ends in different ways.
    np.testing.assert_allclose(same[8:-8], tight.low[8:-8], atol=0.02)
    assert [finish(scan, scan.low).voxels.shape for scan in inputs] == [scan.shape for scan in inputs]


def test_tissue_beyond_the_box_of_the_training_data_is_restored_and_put_back(tmp_path: Path) -> None:
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    voxels = np.pad(HEAD, ((0, 0), (12, 12), (20, 0)))
    voxels[15:25, 25:40, :24] = 300
    nib.Nifti1Image(voxels, affine).to_filename(tmp_path / "neck.nii")
    scan = prepare(tmp_path / "neck.nii", model_card(HEAD_GEOMETRY), "neck")
    assert scan.start[2] <= 0
    assert scan.low.shape[2] >= 4 * (20 + 44)
    whole = finish(scan, scan.low, OutputLayout(keep_ras=True)).voxels
    neck = whole[4 * 17 : 4 * 23, 4 * 27 : 4 * 38, 4 : 4 * 18]
    assert neck.min() > 0.2


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


def test_a_scan_of_a_small_part_of_the_head_is_a_doubt_that_names_the_axis(tmp_path: Path) -> None:
    affine = np.diag([VOXEL_MM] * 3 + [1.0])
    middle = HEAD.shape[2] // 2
    for half, doubts in ((6, ["the field of view is only 48 mm long inferior-superior"]), (18, [])):
        part = HEAD[:, :, middle - half : middle + half].astype(np.float32)
        nib.Nifti1Image(part, affine).to_filename(tmp_path / "scan.nii")
        notes = prepare(tmp_path / "scan.nii", model_card(geometry=HEAD_GEOMETRY), "scan").notes
        assert [note.split(",")[0] for note in notes if "long" in note] == doubts


def test_a_small_object_in_air_is_no_head(tmp_path: Path) -> None:
    voxels = np.zeros((20, 20, 20), np.float32)
    voxels[10, 10, 10] = 1
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "scan.nii")
    with pytest.raises(VolumeError, match="Check that the scan shows a head"):
        prepare(tmp_path / "scan.nii", model_card(geometry=HEAD_GEOMETRY), "scan")
