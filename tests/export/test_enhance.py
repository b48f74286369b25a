"""Enhanced scans lie where the scans lay, in their axis order."""

import json
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from nibabel.spatialimages import SpatialImage
from scipy.spatial.transform import Rotation

from upfield.export.enhance import main
from upfield.export.scan import enhance_volume, isotropic, restore_volume
from upfield.sharding.intensity import NORMALISATION
from upfield.sharding.volume import Volume, from_ras, read_volume

SHAPE, SPACING_MM = (12, 16, 6), (1.6, 1.6, 5.0)
AXCODES = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for flips in product((0, 1), repeat=3)
]


class Unchanged:
    """A restorer that gives back the centre slice."""

    normalisation = NORMALISATION

    def __init__(self, context: int = 0) -> None:
        self.context = context

    def restore(self, low: np.ndarray) -> np.ndarray:
        assert low.shape[1] == 1 + 2 * self.context
        return low[:, self.context : self.context + 1]


def scan_with_landmark(path: Path, axcodes: str = "RAS") -> tuple[Path, np.ndarray]:
    """Write a dark volume with one bright blob; give the blob's place in world mm."""
    affine = np.diag((*SPACING_MM, 1.0))
    affine[:3, :3] = Rotation.from_euler("xyz", (0.2, 0.05, -0.03)).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (-20, 13, 5)
    voxels = np.random.default_rng(0).random(SHAPE, np.float32)
    voxels[5, 9, 3] = 400
    world = affine @ (5, 9, 3, 1)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    image = nib.Nifti1Image(apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, SHAPE))
    image.to_filename(path)
    return path, world[:3]


def landmark_mm(enhanced: Volume) -> np.ndarray:
    voxels = enhanced.voxels
    weights = np.where(voxels > 0.5 * voxels.max(), voxels, 0)
    index = [np.average(axis, weights=weights) for axis in np.indices(voxels.shape)]
    return (enhanced.affine @ (*index, 1))[:3]


@pytest.mark.parametrize("axcodes", AXCODES)
def test_a_landmark_stays_where_it_was_in_the_world(tmp_path: Path, axcodes: str) -> None:
    path, world = scan_with_landmark(tmp_path / "scan.nii.gz", axcodes)
    # Before the intensities are clipped, which would flatten a landmark of one voxel.
    scan = read_volume(path)
    grid = isotropic(scan, "scan")
    found = landmark_mm(from_ras(Volume(grid.voxels, grid.affine, scan.axcodes)))
    np.testing.assert_allclose(found, world, atol=0.5)
    enhanced = enhance_volume(path, Unchanged(), batch_size=4)
    assert "".join(nib.orientations.aff2axcodes(enhanced.affine)) == axcodes


def test_the_field_of_view_is_kept_at_one_millimetre(tmp_path: Path) -> None:
    path, _ = scan_with_landmark(tmp_path / "scan.nii.gz")
    volume, scan = enhance_volume(path, Unchanged(), batch_size=4), read_volume(path)
    assert volume.voxels.shape == (19, 26, 30)
    np.testing.assert_allclose(volume.spacing_mm, 1, atol=1e-6)
    middle, expected = (each.affine @ (*(np.array(each.voxels.shape) - 1) / 2, 1) for each in (volume, scan))
    np.testing.assert_allclose(middle, expected, atol=1e-4)
    np.testing.assert_allclose(volume.voxels.shape, scan.spacing_mm * scan.voxels.shape, atol=0.5)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_slices_come_back_in_order_for_any_batch(context: int, batch_size: int) -> None:
    low = np.random.default_rng(0).random((11, 9, 10), np.float32)
    np.testing.assert_array_equal(restore_volume(low, Unchanged(context), batch_size), low)


def test_a_folder_keeps_its_structure_and_one_bad_file_does_not_stop_the_others(
    tiny_model: Path, tmp_path: Path, run_cli: Callable
) -> None:
    (tmp_path / "scans" / "a").mkdir(parents=True)
    scan_with_landmark(tmp_path / "scans" / "a" / "good.nii.gz")
    (tmp_path / "scans" / "bad.nii").write_bytes(b"nothing")
    code, _, err = run_cli(main, tiny_model, tmp_path / "scans", "--out", tmp_path / "out")
    assert code == 2
    assert "1 of 2 scans could not be enhanced" in err
    assert "bad.nii" in err
    image = nib.load(tmp_path / "out" / "a" / "good.nii.gz")
    assert isinstance(image, SpatialImage)
    assert image.get_data_dtype() == np.float32
    voxels = image.get_fdata(dtype=np.float32)
    assert voxels.min() >= 0
    assert voxels.max() <= 1
    provenance = json.loads((tmp_path / "out" / "a" / "good.json").read_text())
    assert provenance["source"] == "good.nii.gz"
    assert "for research, not for diagnosis" in provenance["note"]
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"good.nii.gz", "good.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "nowhere.nii.gz", "--out", "out"], "expected a NIfTI file or a folder"),
        (["MODEL", "SCAN", "SCAN", "--out", "one.nii.gz"], "expected a folder to write 2 scans to"),
        (["MODEL", "SCAN", "--out", "SCAN"], "expected a new file or an enhanced one"),
        (["MODEL", "SCAN", "--out", "out", "--device", "cuda"], "expected an NVIDIA GPU"),
        (["nowhere.onnx", "SCAN", "--out", "out"], "expected an ONNX file"),
        (["MODEL", "--out", "out"], "expected SCANS"),
        (["MODEL", "TINY", "--out", "out"], "expected a field of view of at least 9 mm"),
    ],
)
def test_bad_input_is_refused(
    tiny_model: Path,
    tmp_path: Path,
    run_cli: Callable,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    scan, _ = scan_with_landmark(tmp_path / "scan.nii.gz")
    nib.Nifti1Image(np.random.default_rng(0).random((7, 5, 3), np.float32), np.eye(4)).to_filename("tiny.nii.gz")
    places = {"MODEL": tiny_model, "SCAN": scan, "TINY": "tiny.nii.gz"}
    code, _, err = run_cli(main, *(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()
