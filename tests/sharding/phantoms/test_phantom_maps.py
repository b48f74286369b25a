import contextlib
import io
from functools import partial

import numpy as np
import pytest
import yaml
from head_maps import GEOMETRY, label_volume
from nibabel.nifti1 import Nifti1Image

from upfield.imaging.volume import read_stack, read_volume
from upfield.sharding.phantom import main
from upfield.sharding.phantoms import cohort_writer
from upfield.sharding.phantoms.cohort_writer import choose_map, listing
from upfield.sharding.phantoms.map_subject import MapTask


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A folder with two label maps."""
    folder = tmp_path_factory.mktemp("maps")
    volume = label_volume()
    for name in ("one", "two"):
        Nifti1Image(volume.voxels.astype(np.int16), volume.affine).to_filename(folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def cohort(maps, tmp_path_factory):
    """A cohort of four subjects on a coarse grid, written by the command: its folder and the printed text."""
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(cohort_writer, "MapTask", partial(MapTask, geometry=GEOMETRY))
        assert main([str(folder), "--labels", str(maps / "*.nii.gz"), "--subjects", "4", "--jobs", "1"]) == 0
    return folder, printed.getvalue()


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def test_each_subject_has_its_true_labels_on_its_high_field_grid(cohort):
    folder, printed = cohort
    assert sorted(path.name for path in (folder / "labels").iterdir()) == [
        "IXI901.nii.gz", "sub-01.nii.gz", "sub-02.nii.gz", "sub-03.nii.gz",
    ]  # fmt: skip
    assert "4 label maps, made from 2; with fewer than 3" in printed
    labels = read_volume(folder / "labels" / "sub-01.nii.gz")
    high = read_stack(sorted((folder / "real" / "high").glob("sub-01_slice_*.nii.gz")))
    assert labels.voxels.shape == high.voxels.shape == GEOMETRY.high_shape
    np.testing.assert_allclose(labels.affine, high.affine)
    assert {0, 2, 41, 511} <= set(np.unique(labels.voxels))
    volume = read_volume(folder / "IXI-T1" / "IXI901-PH-1001-T1.nii.gz")
    np.testing.assert_allclose(read_volume(folder / "labels" / "IXI901.nii.gz").affine, volume.affine)


def test_the_labels_lie_where_the_scans_show_their_tissues(cohort):
    folder, _ = cohort
    labels = read_volume(folder / "labels" / "sub-01.nii.gz").voxels
    high = read_stack(sorted((folder / "real" / "high").glob("sub-01_slice_*.nii.gz"))).voxels
    white, fluid = (np.median(high[np.isin(labels, numbers)]) for numbers in ((2, 41), (4, 43)))
    assert white > 1.5 * fluid


def test_the_low_field_covers_the_same_head(cohort):
    folder, _ = cohort
    low = read_stack(sorted((folder / "real" / "low").glob("sub-01_slice_*.nii.gz")))
    assert low.voxels.shape == GEOMETRY.low_shape
    np.testing.assert_allclose(low.spacing_mm, GEOMETRY.low_spacing_mm)


def test_the_listing_is_a_cohort_that_may_be_replaced(cohort, capsys):
    folder, _ = cohort
    assert yaml.safe_load((folder / "cohorts.yaml").read_text())["cohorts"][0]["name"] == "real"
    assert run(capsys, folder, "--labels", "none/*.nii.gz")[1].count("no file matches") == 1


def test_held_out_subjects_share_their_map_with_nobody(tmp_path):
    maps = [tmp_path / str(number) for number in range(4)]
    chosen = [choose_map(maps, number) for number in range(9)]
    assert all(chosen.count(held) == 1 for held in chosen[:2])
    assert set(chosen) == set(maps)
    assert yaml.safe_load(listing(9, 0, num_maps=4))["cohorts"][0]["split"] == {"val": ["sub-02"], "test": ["sub-01"]}


def test_bad_input_is_refused_in_two_sentences_before_anything_is_written(maps, tmp_path, capsys):
    volume = label_volume()
    volume.voxels[volume.voxels == 515] = 9000
    Nifti1Image(volume.voxels.astype(np.int16), volume.affine).to_filename(tmp_path / "odd.nii.gz")
    Nifti1Image(label_volume().voxels.astype(np.int16), None).to_filename(tmp_path / "sides.nii.gz")
    out, one = tmp_path / "out", maps / "one.nii.gz"
    for arguments, problem in (
        (("--labels", tmp_path / "odd.nii.gz"), "label 9000 is unknown. Say with labels_as"),
        (("--labels", tmp_path / "sides.nii.gz"), "does not say which side is left. Set its sform"),
        (("--labels", maps), "only folders match"),
        (("--labels", ""), "--labels: the value is empty"),
        (("--labels", one, "--labels_as", "{900: water}"), "found 'water'."),
        (("--labels_as", "{900: fat}"), "there are no label maps. Add"),
    ):
        code, error = run(capsys, out, *arguments)
        assert code == 2
        assert problem in error
        assert error.replace(".nii.gz", "").count(". ") <= 1
    assert not out.exists()
