"""Scans of another contrast than the model's: refused by the command and by the service, and folders are filtered."""

import json
import shutil

import nibabel as nib
import numpy as np
import onnx
import pytest
from heads import write_scan
from serving import running, send

from upfield.export.enhance import main
from upfield.export.modelfile.card import read_card, write_card


@pytest.fixture
def t1_model(tiny_model, tmp_path):
    """A model file that was trained on T1w scans of whole heads."""
    path = tmp_path / "t1.onnx"
    model = onnx.load(tiny_model)
    write_card(model, read_card(tiny_model).tree | {"contrast": "T1w", "skull_stripped": False})
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with a T1w, a T2w and a scan without a contrast in its name."""
    (tmp_path / "scans/anat").mkdir(parents=True)
    scan = write_scan(tmp_path / "scans/anat/a_T1w.nii")
    for name in ("b_T2w.nii", "c.nii"):
        shutil.copy(scan, scan.with_name(name))
    return tmp_path / "scans"


def test_another_contrast_is_refused_and_an_unknown_one_doubted(run_cli, t1_model, folder, tmp_path):
    code, _, err = run_cli(main, t1_model, folder, "--out", tmp_path / "out")
    assert code == 2
    assert "b_T2w.nii: its name says T2w, but the model was trained on T1w. Use a model for T2w, or state --con" in err
    assert "c.nii: the contrast of the scan is not known" in err
    assert {path.name for path in (tmp_path / "out/anat").glob("*.nii.gz")} == {"a_T1w.nii.gz", "c.nii.gz"}
    tree = json.loads((tmp_path / "out/anat/a_T1w.json").read_text())
    assert (tree["contrast"], tree["doubts"]) == ({"stated": None, "model": "T1w"}, [])


def test_the_user_may_state_the_contrast(run_cli, t1_model, folder, tmp_path):
    code, _, err = run_cli(main, t1_model, folder, "--out", tmp_path / "out", "--contrast", "t1")
    assert code == 0
    assert "b_T2w.nii: its name says T2w, but T1w was stated" in err
    assert "c.nii: " not in err.replace("c.nii: slice", "")
    code, _, err = run_cli(main, t1_model, folder, "--out", tmp_path / "two", "--contrast", "FLAIR")
    assert code == 2
    assert "its contrast was stated as FLAIR" in err


def test_a_json_file_beside_the_scan_decides_if_its_name_does_not(run_cli, t1_model, folder, tmp_path):
    (folder / "anat/c.json").write_text('{"EchoTime": 0.16, "RepetitionTime": 2}')
    code, _, err = run_cli(main, t1_model, folder / "anat/c.nii", "--out", tmp_path / "c.nii.gz")
    assert code == 2
    assert "the times in its JSON file are those of T2w or FLAIR, but the model was trained on T1w" in err


def test_an_enhanced_scan_is_recognised_by_its_description_or_by_its_provenance(run_cli, t1_model, folder, tmp_path):
    scan = folder / "anat/a_T1w.nii"
    assert run_cli(main, t1_model, scan, "--out", tmp_path / "once.nii.gz")[0] == 0
    # Another program may have changed the description.
    shutil.copy(scan, tmp_path / "copy_T1w.nii")
    shutil.copy(tmp_path / "once.json", tmp_path / "copy_T1w.json")
    for name in ("once.nii.gz", "copy_T1w.nii"):
        assert run_cli(main, t1_model, tmp_path / name, "--out", tmp_path / "twice.nii.gz")[0] == 0
        doubts = json.loads((tmp_path / "twice.json").read_text())["doubts"]
        assert sum("it has been enhanced already" in doubt for doubt in doubts) == 1, doubts


def test_a_model_without_contrast_is_mentioned_once(run_cli, tiny_model, folder, tmp_path):
    code, _, err = run_cli(main, tiny_model, folder, "--out", tmp_path / "out")
    assert (code, err.count("contrast")) == (0, err.count("does not say which contrast") * 2)


@pytest.mark.parametrize(("match", "names"), [("*_T1w*", {"a_T1w"}), ("anat/*", {"a_T1w", "b_T2w", "c"})])
def test_folders_are_filtered(run_cli, tiny_model, folder, tmp_path, match, names):
    assert run_cli(main, tiny_model, folder, "--out", tmp_path / "out", "--match", match)[0] == 0
    assert {path.name for path in (tmp_path / "out/anat").glob("*.nii.gz")} == {f"{name}.nii.gz" for name in names}


def test_a_filter_that_matches_nothing_says_what_is_there(run_cli, tiny_model, folder, tmp_path):
    code, _, err = run_cli(main, tiny_model, folder, "--out", tmp_path / "out", "--match", "*_FLAIR*")
    assert code == 2
    assert "none of the 3 scans matches *_FLAIR*; the folder contains anat/a_T1w.nii, anat/b_T2w.nii, anat/c.nii" in err


def test_the_service_refuses_another_contrast_unless_the_client_states_it(t1_model, folder, tmp_path):
    scan = (folder / "anat/c.nii").read_bytes()
    with running(t1_model, tmp_path / "work") as service:
        refused = send(service.port, scan, path="/enhance?name=b_T2w.nii")
        stated = send(service.port, scan, path="/enhance?name=b_T2w.nii&contrast=T1w")
        malformed = send(service.port, scan, path="/enhance?contrast=T1%20w")
    assert refused.status == 422
    assert (
        b"its name says T2w, but the model was trained on T1w. Use a model for T2w, or state contrast=T1w"
        in refused.body
    )
    assert (stated.status, malformed.status) == (200, 422)
    assert "T1w was stated" in stated.headers["x-upfield-notes"]


def test_a_scan_that_is_fine_along_all_axes_is_doubted_once(run_cli, t1_model, tmp_path):
    scan = tmp_path / "a_T1w.nii"
    voxels = np.random.default_rng(0).integers(0, 900, (40, 40, 40), np.int16)
    nib.Nifti1Image(voxels, np.diag([0.5, 0.5, 0.5, 1])).to_filename(scan)
    code, _, err = run_cli(main, t1_model, scan, "--out", tmp_path / "out.nii.gz")
    assert (code, err.count("0.5 x 0.5 x 0.5 mm"), err.count("finer than the grid")) == (0, 1, 0)
    # What the scanner stated needs no second sign.
    scan.with_suffix(".json").write_text('{"MagneticFieldStrength": 3}')
    code, _, err = run_cli(main, t1_model, scan, "--out", tmp_path / "out.nii.gz")
    assert (code, err.count("states a field of 3 T"), err.count("0.5 x 0.5 x 0.5 mm")) == (0, 1, 0)
