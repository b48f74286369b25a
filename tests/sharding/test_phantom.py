import contextlib
import io
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import aff2axcodes

from upfield.common.command import from_tree
from upfield.imaging.volume import read_stack, read_volume
from upfield.sharding.configuration import GeometryConfig, ShardConfig
from upfield.sharding.phantom import main
from upfield.sharding.phantoms import cohort_writer
from upfield.sharding.phantoms.anatomy import (
    LEAST_JACOBIAN,
    Blur,
    TemplateGrid,
    add_rician,
    blur_lines,
    displace,
    load_template,
    make_tissues,
    measure,
    signal,
    template_indices,
)
from upfield.sharding.phantoms.cohort_writer import listing, refuse_foreign
from upfield.sharding.phantoms.subject_writer import PhantomTask, draw_subject, write_subject

COARSE = GeometryConfig((37, 46, 13), (4.8, 4.8, 15.0), (60, 74, 67), (3.0, 3.0, 3.0))
# Both fields of these cohorts cover 180 x 222 x 198 mm.
SMALL = GeometryConfig((36, 37, 11), (5.0, 6.0, 18.0), (60, 74, 66), (3.0, 3.0, 3.0))
GRID = TemplateGrid(COARSE.high_shape, COARSE.high_spacing_mm)


@pytest.fixture(scope="module")
def template():
    return load_template(stride=2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort of four subjects on a coarse grid, written by the command: its folder and the printed text."""
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(cohort_writer, "PhantomTask", partial(PhantomTask, geometry=SMALL))
        assert main([str(folder), "--subjects", "4", "--jobs", "1"]) == 0
    return folder, printed.getvalue()


def stack(folder, field):
    return read_stack(sorted((folder / "real" / field).glob("sub-01_slice_*.nii.gz")))


def make_head(template, number):
    generator = np.random.default_rng([0, number])
    subject = draw_subject(generator)
    return subject, make_tissues(generator, GRID, template, subject.morphology)


def file_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.nii.gz")}


@pytest.mark.parametrize("rms_mm", [1.0, 5.0, 30.0])
def test_deformations_have_no_fold(template, rms_mm):
    generator = np.random.default_rng(3)
    morphology = replace(draw_subject(generator).morphology, fine_rms_mm=rms_mm)
    indices = template_indices(displace(generator, GRID, morphology), GRID, morphology, template.affine)
    gradient = np.stack([np.stack(np.gradient(component * 2.0, 3.0), axis=-1) for component in indices], axis=-2)
    assert np.linalg.det(gradient).min() > 0.9 * LEAST_JACOBIAN


def test_subjects_have_different_anatomies(template):
    heads = [make_head(template, number)[1] for number in range(3)]
    brains = [head.white > 0.5 for head in heads]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert 2 * (brains[first] & brains[second]).sum() / (brains[first].sum() + brains[second].sum()) < 0.8


def test_tissue_fractions_never_exceed_one(template):
    *shares, _ = make_head(template, 0)[1]
    assert all(share.min() > -1e-5 for share in shares)
    assert np.sum(shares, axis=0).max() < 1 + 1e-5


def test_both_fields_order_the_tissues_like_t1_with_less_contrast_at_low_field():
    for number in range(50):
        subject = draw_subject(np.random.default_rng(number))
        high, low = subject.high_contrast, subject.low_contrast
        assert high.white > high.grey > high.fluid > high.skull
        assert low.white > low.grey > low.fluid > low.skull
        assert (low.white - low.grey) / low.white < (high.white - high.grey) / high.white


def test_low_field_is_noisier_darker_and_less_sharp(template):
    subject, tissues = make_head(template, 1)
    white = tissues.white > 0.9
    sharp = signal(tissues, subject.high_contrast)
    assert signal(tissues, subject.low_contrast)[white].mean() < sharp[white].mean()
    lines = blur_lines(GRID, GRID, Blur(slab_mm=6.0, cutoff=0.8, taper=0.3))
    steps = []
    for used in (None, lines):
        measured = measure(np.random.default_rng(0), tissues, GRID, subject.high_contrast, subject.high_scanner, used)
        steps.append(np.abs(np.diff(measured, axis=2)).mean())
    assert steps[1] < steps[0]
    assert subject.low_scanner.snr < subject.high_scanner.snr / 2


def test_measured_low_field_has_more_noise_in_the_air(cohort):
    noise = {}
    for field, corner in (("low", 3), ("high", 4)):
        voxels = stack(cohort[0], field).voxels
        noise[field] = voxels[:corner, :corner].std() / np.percentile(voxels, 99)
    assert noise["low"] > 1.5 * noise["high"] > 0


def test_noise_is_rician():
    air = add_rician(np.random.default_rng(0), np.zeros((60, 60, 60), np.float32), 2.0)
    assert air.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(2 * np.sqrt(2 - np.pi / 2), rel=0.01)


def test_slices_average_their_slab_and_keep_the_mean():
    geometry = GeometryConfig()
    fine = TemplateGrid(geometry.high_shape, geometry.high_spacing_mm)
    coarse = TemplateGrid(geometry.low_shape, geometry.low_spacing_mm)
    lines = blur_lines(coarse, fine, Blur(slab_mm=5.0, cutoff=1.0, taper=0.3))
    np.testing.assert_allclose(lines[2], np.kron(np.eye(40), np.full((1, 5), 0.2)), atol=1e-12)
    for line in lines:
        np.testing.assert_allclose(line.sum(axis=1), 1)


def test_the_same_seed_gives_the_same_bytes_and_another_subject_other_bytes(tmp_path, template):
    runs = [("a", 0, 0), ("b", 0, 0), ("c", 0, 1), ("d", 1, 0)]
    for name, seed, number in runs:
        write_subject(PhantomTask(tmp_path / name, seed, number, 1, COARSE), template)
        write_subject(PhantomTask(tmp_path / name, seed, number, 0, COARSE), template)
    first, again, *_ = (file_bytes(tmp_path / name) for name, *_ in runs)
    assert len(first) == COARSE.low_shape[2] + COARSE.high_shape[2] + 1
    assert first == again
    volumes = {next((tmp_path / name / "IXI-T1").iterdir()).read_bytes() for name, *_ in runs}
    assert len(volumes) == 3


def test_phantoms_have_the_shapes_and_spacings_of_shard_sets(tmp_path):
    assert PhantomTask(tmp_path, 0, 0, 1).geometry == GeometryConfig()


def test_two_thirds_of_the_cohort_are_pairs_and_the_output_says_so(cohort):
    folder, printed = cohort
    assert sorted(path.name for path in folder.iterdir()) == ["IXI-T1", "cohorts.yaml", "real"]
    assert printed.splitlines() == [
        f"{folder}/real: 3 subjects, 33 low and 198 high slices",
        f"{folder}/IXI-T1: 1 volume",
    ]


def test_listing_is_a_shard_configuration_of_files_that_exist(cohort):
    tree = {"out": "shards"} | yaml.safe_load((cohort[0] / "cohorts.yaml").read_text())
    real, ixi = from_tree(ShardConfig, tree, "cohorts.yaml").cohorts
    assert (real.name, real.synthetic, real.split) == ("real", 1, {"val": 1, "test": 1})
    assert (ixi.name, ixi.synthetic, ixi.low) == ("ixi", 1, None)
    assert (cohort[0] / str(real.low).format(subject="sub-03", slice="010")).is_file()
    assert (cohort[0] / str(real.high).format(subject="sub-03", slice="065")).is_file()
    assert (cohort[0] / str(ixi.high).format(subject="IXI901", site="PH", scan="1001")).is_file()


@pytest.mark.parametrize("field", ["low", "high"])
def test_slices_stack_to_the_grid(cohort, field):
    grid = TemplateGrid(getattr(SMALL, f"{field}_shape"), getattr(SMALL, f"{field}_spacing_mm"))
    paths = sorted((cohort[0] / "real" / field).glob("sub-02_slice_*.nii.gz"))
    volume = read_stack(paths)
    assert volume.voxels.shape == grid.shape
    np.testing.assert_allclose(volume.affine, grid.affine, atol=1e-4)
    seventh = Nifti1Image.from_filename(paths[7])
    assert seventh.shape == (*grid.shape[:2], 1)
    np.testing.assert_allclose(np.asarray(seventh.affine) @ [0, 0, 0, 1], grid.affine @ [0, 0, 7, 1], atol=1e-4)


def test_both_fields_cover_the_same_box(cohort):
    centres, sizes = [], []
    for field in ("low", "high"):
        volume = stack(cohort[0], field)
        middle = (np.asarray(volume.voxels.shape) - 1) / 2
        centres.append(volume.affine @ [*middle, 1])
        sizes.append(volume.voxels.shape * volume.spacing_mm)
    np.testing.assert_allclose(centres[0], centres[1], atol=1e-3)
    np.testing.assert_allclose(sizes[0], sizes[1], atol=0.25)


def test_ixi_volumes_are_stored_posterior_superior_right(cohort):
    path = cohort[0] / "IXI-T1" / "IXI901-PH-1001-T1.nii.gz"
    image = Nifti1Image.from_filename(path)
    assert aff2axcodes(image.affine) == ("P", "S", "R")
    assert image.shape == (74, 66, 60)
    assert image.get_data_dtype() == np.int16
    volume = read_volume(path)
    assert volume.voxels.shape == SMALL.high_shape
    np.testing.assert_allclose(volume.affine, TemplateGrid(SMALL.high_shape, (3, 3, 3)).affine, atol=1e-4)
    # The face is at the front and bottom; a flipped axis would move it elsewhere.
    assert volume.voxels[30, 60, 7] > 5 * volume.voxels[30, 7, 63]


def test_a_foreign_folder_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("dear to somebody")
    assert main([str(tmp_path)]) == 2
    assert "expected an empty folder or a phantom cohort, found thesis.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_edited_listing_is_refused_and_a_finished_or_interrupted_cohort_is_not(tmp_path, cohort, capsys):
    refuse_foreign(cohort[0])
    (tmp_path / "cohorts.yaml").write_text(listing(4, 0) + "  - name: mine\n")
    assert main([str(tmp_path)]) == 2
    assert "that was edited" in capsys.readouterr().err
    (tmp_path / cohort_writer.STAGING).mkdir()
    refuse_foreign(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subjects", "3"], "expected 4 to 99"),
        (["--seed", "-1"], "found -1 and 0"),
        (["--jobs", "-1"], "found 0 and -1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, capsys, arguments, message):
    assert main([str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_nilearn_the_error_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    assert main([str(tmp_path / "out")]) == 2
    assert "pip install 'upfield[demo]'" in capsys.readouterr().err


def test_a_failed_build_leaves_nothing(tmp_path, capsys, monkeypatch):
    def fail(work, jobs, processes):
        (jobs[0].folder / "real").mkdir()
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(cohort_writer, "run_tasks", fail)
    assert main([str(tmp_path / "out")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
