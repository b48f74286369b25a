"""A scan that is an array is restored as `upfield enhance` restores its file, and wrong arrays are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from heads import OBLIQUE, load, write_scan

import upfield
from upfield.export.enhance import main
from upfield.export.modelfile.card import ModelCard
from upfield.export.pretrained.packaged_model import FOLDER

# The scans of the tests show half a head.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> upfield.Model:
    return upfield.load_model(tiny_model)


@pytest.mark.parametrize("axcodes", ["PSR", "LPI"])
def test_an_array_and_its_file_have_the_same_values(
    model: upfield.Model, tmp_path: Path, run_cli: Callable, axcodes: str
) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", axcodes, OBLIQUE)
    assert run_cli(main, model.path, scan, "--out", tmp_path / "enhanced.nii.gz")[0] == 0
    image, written = load(scan), load(tmp_path / "enhanced.nii.gz")
    restored = model.restore(image.get_fdata(), image.affine)
    assert np.array_equal(restored.voxels, np.asarray(written.dataobj))
    assert np.allclose(restored.affine, written.affine, atol=1e-4)
    # The same scan in RAS+ order gives the same values in RAS+ order.
    volume = upfield.read_scan(scan)
    turned = nib.as_closest_canonical(written)
    assert np.array_equal(model.restore(volume.voxels, volume.affine).voxels, np.asarray(turned.dataobj))


def test_a_run_and_its_model_file_agree(tiny_run: Path, model: upfield.Model, tmp_path: Path) -> None:
    scan = upfield.read_scan(write_scan(tmp_path / "scan.nii.gz"))
    run = upfield.load_model(str(tiny_run))
    values = [loaded.restore(scan.voxels, scan.affine).voxels for loaded in (run, model)]
    assert np.allclose(*values, atol=1e-5)
    assert run.card.geometry == model.card.geometry
    assert run.card.tree["weights_sha256"] == model.card.tree["weights_sha256"]


def test_without_a_name_the_starter_model_is_loaded() -> None:
    assert upfield.load_model().path == upfield.load_model("starter-t1").path == FOLDER / "starter-t1.onnx"
    with pytest.raises(upfield.InputError, match="no model with this name comes with the package"):
        upfield.load_model("starter")


VOXELS = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (np.zeros((2, 3)), np.eye(4), r"voxels: expected an array \(X, Y, Z\), found shape \(2, 3\). Pass one whole"),
        (VOXELS[..., None], np.eye(4), r"found shape \(2, 3, 4, 1\). Choose one volume, such as voxels\[..., 0\]"),
        (VOXELS * 1j, np.eye(4), "voxels: expected an array of real numbers, found type complex128"),
        ([["a"]], np.eye(4), "voxels: expected an array of real numbers, found type <U1"),
        (np.where(VOXELS, VOXELS, np.nan), np.eye(4), "voxels: 1 of 24 are NaN or infinite. Replace them"),
        (np.ones((2, 3, 4)), np.eye(4), "voxels: every voxel has the value 1."),
        (VOXELS, None, "affine: expected an array of real numbers, found None. Pass the affine of the scan."),
        (VOXELS, np.eye(3), r"affine: expected a \(4, 4\) array .* found shape \(3, 3\). With nibabel, it is image"),
        (VOXELS, np.ones((4, 4)), r"affine: expected .* found the last row \[1.0, 1.0, 1.0, 1.0\]"),
        (VOXELS, np.diag((1, 1, 0, 1)), "affine: the matrix cannot be inverted"),
        (VOXELS, np.eye(4), "voxels: .* mm"),
    ],
)
def test_wrong_arrays_are_refused(model: upfield.Model, voxels: Any, affine: Any, message: str) -> None:
    with pytest.raises(upfield.InputError, match=message):
        model.restore(voxels, affine)


def test_other_contrasts_are_refused(tmp_path: Path) -> None:
    scan = upfield.read_scan(write_scan(tmp_path / "scan.nii.gz"))
    model = upfield.load_model()
    for contrast, message in (("T2", "its contrast was stated as T2w"), ("T1 w", "^contrast: ")):
        with pytest.raises(upfield.InputError, match=message):
            model.restore(scan.voxels, scan.affine, contrast=contrast)


def test_doubts_are_warnings(model: upfield.Model, tmp_path: Path) -> None:
    scan = upfield.read_scan(write_scan(tmp_path / "scan.nii.gz"))
    affine = scan.affine.copy()
    affine[0, 1] += 0.2
    with pytest.warns(UserWarning, match=r"axes 0 and 1 meet at .* \(sheared\)"):
        model.restore(scan.voxels, affine)


def test_a_model_that_is_worse_than_interpolation_is_a_warning(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelCard, "warn_if_below_cubic", lambda _, name: f"warning: {name}: worse")
    with pytest.warns(UserWarning, match=r"^model.onnx: worse$"):
        upfield.load_model(tiny_model)
