"""Landmarks keep their position on another image's grid, and voxels outside the scan's field of view are zero."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from heads import OBLIQUE, SHAPE, SPACING_MM, Unchanged, draw, load, model_card, off_mm, scan_affine, write_scan
from scipy.spatial.transform import Rotation

from upfield.common.errors import VolumeError
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import OutputLayout, expect_on_grid, prepare, write_enhanced
from upfield.imaging import regrid as module
from upfield.imaging.placement import Placement
from upfield.imaging.regrid import Grid, overlaps, read_grid, regrid

TURNED = Rotation.from_euler("xyz", (-0.3, 0.2, 0.4)).as_matrix()
FLIPPED = np.diag((-1.0, 1.0, -1.0))
SWAPPED = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])


def grid_affine(axes: np.ndarray, spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return an affine whose grid is centred near (0, 20, 10)."""
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = (0, 20, 10) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def write_like(path: Path, affine: np.ndarray, shape: tuple[int, ...], code: int = 1) -> Path:
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), None)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("rotation", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "PSR"])
@pytest.mark.parametrize(
    ("axes", "spacing_mm", "shape"),
    [
        (np.eye(3), (1.0, 1.0, 1.0), (60, 60, 60)),
        (FLIPPED, (0.8, 1.2, 2.0), (60, 50, 40)),
        (SWAPPED, (2.0, 1.0, 1.5), (40, 60, 50)),
        (TURNED, (1.0, 1.0, 1.0), (70, 71, 72)),
        (TURNED @ FLIPPED @ SWAPPED, (0.9, 1.4, 2.0), (80, 60, 40)),
    ],
    ids=["plain", "flipped", "swapped", "turned", "all"],
)
def test_a_landmark_keeps_its_world_position_on_the_other_grid(
    tmp_path: Path,
    axcodes: str,
    rotation: np.ndarray | None,
    axes: np.ndarray,
    spacing_mm: tuple[float, ...],
    shape: tuple[int, ...],
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", axcodes, rotation)
    like = write_like(tmp_path / "like.nii.gz", grid_affine(axes, spacing_mm, shape), shape, code=2)
    prepared = prepare(scan, model_card(), "scan")
    out = tmp_path / "out.nii.gz"
    write_enhanced(prepared, restore_volume(prepared.low, Unchanged(), 8), out, OutputLayout(like=read_grid(like)))
    assert off_mm(out) < min(spacing_mm) / 2
    image, other = load(out), load(like)
    assert image.shape == other.shape
    np.testing.assert_allclose(image.affine, other.affine, atol=1e-5)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (2, 2)
    voxels = np.asarray(image.dataobj)
    assert voxels.min() >= 0
    assert voxels.max() <= 1


@pytest.mark.parametrize("axes", [FLIPPED, TURNED], ids=["parallel", "oblique"])
def test_a_ramp_stays_a_ramp_and_the_outside_is_zero(axes: np.ndarray) -> None:
    shape, target = (20, 24, 28), (33, 34, 35)
    slopes = np.array([0.1, -0.2, 0.3])
    ramp = (np.tensordot(slopes, np.indices(shape), 1) + 20).astype(np.float32)
    affine = grid_affine(np.eye(3), (1, 1, 1), shape)
    grid = Grid("ramp", target, Placement(grid_affine(axes, (1.1, 1.0, 0.9), target), 1, 1))
    found = regrid(ramp, affine, grid)
    to_index = np.linalg.inv(affine) @ grid.placement.affine
    index = np.tensordot(to_index, np.stack([*np.indices(target), np.ones(target)]), 1)[:3]
    ends = np.array(shape)[:, None, None, None] - 1
    # Near the border, a spline through mirrored voxels differs from the ramp. In the middle it equals the ramp.
    inner = ((index >= 5) & (index <= ends - 5)).all(axis=0)
    assert inner.any()
    np.testing.assert_allclose(found[inner], (np.tensordot(slopes, index, 1) + 20)[inner], rtol=1e-3)
    outside = ((index < -0.51) | (index > ends + 0.51)).any(axis=0)
    assert outside.any()
    assert not found[outside].any()
    assert found[((index >= -0.49) & (index <= ends + 0.49)).all(axis=0)].min() > 5


def test_both_methods_of_interpolation_agree() -> None:
    voxels = np.random.default_rng(0).random((14, 15, 16), np.float32)
    to_index = np.linalg.inv(grid_affine(np.eye(3), (1, 1, 1), voxels.shape)) @ grid_affine(
        SWAPPED, (0.7, 1.3, 1.0), (20, 21, 22)
    )
    axes = module._parallel_axes(to_index, (20, 21, 22))
    assert axes is not None
    quick = module._along_axes(voxels, to_index, (20, 21, 22), axes)
    np.testing.assert_allclose(quick, module._obliquely(voxels, to_index, (20, 21, 22)), atol=2e-5)


def test_a_series_gives_the_grid_of_its_volumes(tmp_path: Path) -> None:
    like = write_like(tmp_path / "like.nii.gz", grid_affine(TURNED, (2, 2, 2), (9, 10, 11)), (9, 10, 11, 3))
    assert read_grid(like).shape == (9, 10, 11)


def test_only_the_header_of_the_other_image_is_needed(tmp_path: Path) -> None:
    like = write_like(tmp_path / "like.nii", grid_affine(TURNED, (2, 2, 2), (9, 10, 11)), (9, 10, 11))
    like.write_bytes(like.read_bytes()[:348])
    assert read_grid(like).shape == (9, 10, 11)


def test_grids_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    nowhere = nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), None)
    nowhere.to_filename(tmp_path / "nowhere.nii")
    with pytest.raises(VolumeError, match=r"nowhere.nii: like: the header has no usable position"):
        read_grid(tmp_path / "nowhere.nii")
    flat = write_like(tmp_path / "flat.nii", np.eye(4), (20, 20))
    with pytest.raises(VolumeError, match="like: expected at least 3 dimensions"):
        read_grid(flat)
    far = grid_affine(TURNED, (1, 1, 1), (30, 30, 30))
    far[0, 3] += 500
    grid = read_grid(write_like(tmp_path / "far.nii", far, (30, 30, 30)))
    prepared = prepare(write_scan(tmp_path / "scan.nii"), model_card(), "scan")
    assert not overlaps(prepared.low.shape, prepared.affine, grid)
    with pytest.raises(VolumeError, match=r"scan: the field of view does not overlap that of far.nii"):
        expect_on_grid(prepared, grid, "scan")
    image = nib.Nifti1Image(draw(SHAPE, scan_affine()[0]), None)
    image.header.set_zooms(SPACING_MM)
    image.to_filename(tmp_path / "unplaced.nii")
    with pytest.raises(VolumeError, match="the header does not state the position of the scan"):
        expect_on_grid(prepare(tmp_path / "unplaced.nii", model_card(), "scan"), grid, "scan")
