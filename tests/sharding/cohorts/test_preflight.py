import errno
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt
from small_scans import AFFINE, noise, only, problems_of, save, save_stack, sheared, stack_affine, subject

from upfield.common.errors import RunError, VolumeError
from upfield.imaging import header as header_module
from upfield.imaging.volume import read_stack, read_volume
from upfield.sharding.cohorts.subjects import Source, Subject

AWKWARD = Path(__file__).parents[4] / "shared/data/awkward"
AWKWARD_FILES = sorted(AWKWARD.glob("*.nii*")) if AWKWARD.is_dir() else []


def test_a_sound_cohort_has_no_problems(tmp_path):
    (tmp_path / "high").mkdir()
    subjects = [
        subject("1", save(tmp_path / "1.nii.gz")),
        subject("2", save_stack(tmp_path / "high"), save(tmp_path / "2.mgz", noise(5, 4, 6), kind=nib.MGHImage)),
        subject("3", save(tmp_path / "3.nii", noise(6, 5, 6, 1), sheared(0.5)), cohort="b"),
    ]
    assert problems_of(subjects) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Jane.nii.gz", b"", "the file is empty"),
        ("Jane.nii.gz", b"Jane", "this is not a readable NIfTI file (BadGzipFile"),
        ("Jane.nii", bytes(1000), "this is not a readable NIfTI file (ImageFileError"),
        ("Jane.nii", None, "there is no such file. Check the path."),
    ],
)
def test_a_file_that_is_not_nifti_has_a_header_problem(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    problem = only(problems_of([subject("Jane", tmp_path / name)]))
    assert (problem.cohort, problem.subject, problem.field, problem.check) == ("a", "Jane", "high", "header")
    assert problem.file == str(tmp_path / name)
    assert problem.message.startswith(message)
    assert "Jane" not in problem.message


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_a_truncated_file_has_a_header_problem(tmp_path, name):
    path = save(tmp_path / name, noise(30, 30, 30), kind=nib.MGHImage if "mgz" in name else nib.Nifti1Image)
    path.write_bytes(path.read_bytes()[:-100])
    problem = only(problems_of([subject("1", path)]))
    assert problem.check == "header"
    assert "the file is cut off or damaged: it should have" in problem.message


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (noise(4, 5, 6).astype(np.complex64), "expected real voxels, found type complex64"),
        (noise(4, 5, 6, 3).astype(np.uint8).view([(c, "u1") for c in "RGB"])[..., 0], "expected real voxels"),
        (noise(4, 5, 6, 2), "expected 3 dimensions, found 4"),
        (noise(4, 5), "expected 3 dimensions, found 2"),
        (noise(4, 5, 1), "expected at least 2 voxels along each axis"),
        (noise(4, 0, 6), "the file holds no voxels"),
    ],
)
def test_a_file_without_exactly_one_real_volume_has_a_header_problem(tmp_path, voxels, message):
    problem = only(problems_of([subject("1", save(tmp_path / "a.nii", voxels))]))
    assert problem.check == "header"
    assert problem.message.startswith(message)


def test_a_header_that_declares_too_many_voxels_is_a_problem(tmp_path):
    path = save(tmp_path / "a.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    assert only(problems_of([subject("1", path)])).message.startswith("expected at most 1073741824 voxels")


def test_an_affine_without_three_axes_is_a_problem(tmp_path):
    flat = AFFINE.copy()
    flat[:3, 2] = flat[:3, 1]
    for affine in (flat, np.diag([0, 0, 0, 1]), np.diag([1, np.nan, 1, 1])):
        rows = dict(zip(("srow_x", "srow_y", "srow_z"), affine, strict=False))
        path = save(tmp_path / "a.nii", qform_code=0, **rows)
        problem = only(problems_of([subject("1", path)]))
        assert problem.check == "affine"
        assert problem.message.startswith("the affine does not have three distinct axes: [[")


def test_a_sheared_affine_is_a_problem_that_states_the_angle(tmp_path):
    problem = only(problems_of([subject("1", save(tmp_path / "a.nii", sform=sheared(5), qform_code=0))]))
    assert problem.check == "affine"
    assert "axes 1 and 2 meet at 85.0 degrees" in problem.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"affine": np.diag([0.001, 0.001, 0.001, 1])}, "expected voxels of 0.1 to 12 mm, found 0.001 x 0.001 x 0.001"),
        ({"affine": np.diag([1, 1, 20, 1])}, "found 1 x 1 x 20 mm"),
        ({"xyzt_units": 1}, "expected lengths in mm, found metres"),
        ({"xyzt_units": 3 + 8}, "expected lengths in mm, found micrometres"),
        ({"sform_code": 0, "pixdim": [1, 1, 0, 1, 0, 0, 0, 0]}, "the header states no voxel size, or 0"),
    ],
)
def test_an_implausible_voxel_size_is_a_problem(tmp_path, fields, message):
    problem = only(problems_of([subject("1", save(tmp_path / "a.nii", **fields))]))
    assert problem.check == "spacing"
    assert message in problem.message


def test_an_unknown_side_is_a_problem_until_the_cohort_states_it(tmp_path):
    path = save(tmp_path / "a.nii.gz", qform_code=0, sform_code=0)
    problem = only(problems_of([subject("1", path)]))
    assert problem.check == "side"
    assert "set `orientation` of the cohort" in problem.message
    assert problems_of([subject("1", path, orientation="LPS")]) == []


def test_contradicting_forms_are_a_problem_whatever_the_cohort_states(tmp_path):
    mirrored = np.diag([-1, 1, 1, 1]) @ AFFINE
    problem = only(problems_of([subject("1", save(tmp_path / "a.nii", sform=mirrored), orientation="RAS")]))
    assert problem.check == "side"
    assert "qform and sform disagree about where the axes point: their axes differ by up to 180" in problem.message


def test_forms_that_differ_by_the_tilt_of_a_head_are_not_a_problem(tmp_path):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert problems_of([subject("1", save(tmp_path / "a.nii", sform=turn @ AFFINE))]) == []


def test_equal_scans_of_two_subjects_are_a_problem_of_both_and_the_message_names_neither(tmp_path):
    path = save(tmp_path / "sub-Jane.nii.gz")
    twin = tmp_path / "sub-John.nii"
    twin.write_bytes(gzip.decompress(path.read_bytes()))
    other = save(tmp_path / "sub-Ada.nii.gz", noise(4, 5, 6) + 1)
    problems = problems_of([subject("Jane", path), subject("John", other, twin, cohort="b"), subject("Ada", other)])
    assert [(p.cohort, p.subject, p.field, p.check) for p in problems] == [
        ("a", "Ada", "high", "same"),
        ("a", "Jane", "high", "same"),
        ("b", "John", "high", "same"),
        ("b", "John", "low", "same"),
    ]
    assert problems[1].file == f"{path} = {twin} (b John)"
    assert problems[1].message == (
        "this scan has the same content as the low field of another subject. Leave one of them out."
    )


def test_equal_low_and_high_scans_of_a_subject_are_a_problem_of_both_fields(tmp_path):
    paths = save_stack(tmp_path)
    problems = problems_of([subject("1", paths, paths)])
    assert [(p.field, p.check) for p in problems] == [("high", "same"), ("low", "same")]
    assert "the same content as the low field of the same subject" in problems[0].message


def test_shared_black_slices_are_not_a_problem(tmp_path):
    stacks = []
    for name in "ab":
        (tmp_path / name).mkdir()
        stacks.append(save_stack(tmp_path / name))
        save(stacks[-1][0], np.zeros((4, 5, 1), np.int16))
    for number in range(1, 6):
        save(stacks[1][number], noise(4, 5, 1) + 99 + number, stack_affine(number))
    assert problems_of([subject(name, stack) for name, stack in zip("ab", stacks, strict=True)]) == []


def test_all_problems_are_reported_together_and_sorted_for_any_jobs(tmp_path, monkeypatch):
    bad = save(tmp_path / "bad.nii", xyzt_units=1, qform_code=0, sform_code=0)
    (tmp_path / "empty.nii").write_bytes(b"")
    subjects = [subject(f"{n}", bad if n % 2 else tmp_path / "empty.nii", cohort="ba"[n % 2]) for n in range(9, -1, -1)]
    alone = problems_of(subjects, jobs=1)
    assert [(p.cohort, p.subject, p.check) for p in alone] == sorted((p.cohort, p.subject, p.check) for p in alone)
    assert {p.check for p in alone} == {"header", "same", "side", "spacing"}
    monkeypatch.setattr("upfield.sharding.cohorts.subjects.FILES_FOR_PROCESSES", 1)
    assert problems_of(subjects, jobs=2) == alone


def test_fields_rotated_against_each_other_are_a_problem_if_axes_are_resampled_one_by_one(tmp_path):
    turned = np.eye(4)
    turned[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    voxels = np.random.default_rng(0).integers(0, 99, (2, 8, 9, 10)).astype(np.int16)
    # The tilt does not depend on the order in which voxels are stored.
    order: Any = axcodes2ornt("PSL")
    stored = nib.Nifti1Image(voxels[0], turned).as_reoriented(order)
    stored.to_filename(tmp_path / "low.nii")
    nib.Nifti1Image(voxels[1], np.eye(4)).to_filename(tmp_path / "high.nii")
    low, high = (Source((tmp_path / f"{name}.nii",), stacked=False) for name in ("low", "high"))
    cases: list[Any] = [("crop_pad", "none", 1), ("resize", "none", 0), ("crop_pad", "rigid", 0)]
    for fit, align, expected in cases:
        subject = Subject("a", "s", "s", "train", high, low, fit, (), align)
        problems = [problem for problem in problems_of([subject]) if not problem.is_doubt]
        assert len(problems) == expected
        assert all("at most 2 degrees, found 17.2" in problem.message for problem in problems)


@pytest.mark.skipif(not AWKWARD_FILES, reason="no ../shared/data/awkward beside this checkout")
@pytest.mark.parametrize("path", AWKWARD_FILES, ids=lambda path: path.name)
def test_real_awkward_files_are_a_problem_now_or_when_read_or_are_read_right(path):
    checks = {
        "4d_pcasl_52x68x20x10.nii.gz": "header",
        "complex64_10cubed_qform0_sform0.nii.gz": "header",
        "ct_sheared_sform_qform_mismatch.nii.gz": "affine",
        "empty_file.nii.gz": "header",
        "rgb24_ct.nii.gz": "header",
        "text_pointer.nii.gz": "header",
        "truncated_gzip.nii.gz": "header",
    }
    problems = problems_of([subject("1", path)])
    refused = [problem.check for problem in problems if not problem.is_doubt]
    assert refused == ([checks[path.name]] if path.name in checks else [])
    if refused:
        return
    try:
        volume = read_volume(path)
    except VolumeError as error:
        assert path.name.startswith(("all_zero", "has_153_NaN")), error  # noqa: PT017
        return
    image = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_allclose(volume.voxels, np.squeeze(image.get_fdata()), rtol=1e-6)


def test_volumes_without_problems_can_be_read(tmp_path):
    paths = save_stack(tmp_path, step_mm=-3)
    assert problems_of([subject("1", paths)]) == []
    volume = read_stack(paths)
    assert volume.voxels.shape == (4, 5, 6)
    np.testing.assert_array_equal(volume.voxels[..., -1], noise(4, 5, 1)[..., 0])


@pytest.mark.parametrize("order", ["abcde", "edcba"])
def test_a_stack_that_shows_half_a_head_is_a_problem_and_one_that_lacks_little_is_reported(tmp_path, capsys, order):
    lengths = {"a": 20, "b": 20, "c": 20, "d": 14, "e": 17}
    subjects = []
    for name in order:
        (tmp_path / name).mkdir()
        paths = save_stack(tmp_path / name, lengths[name])
        for number, path in enumerate(paths):
            save(path, noise(4, 5, 1) + 50 * "abcde".index(name), stack_affine(number))
        subjects.append(subject(name, paths))
    problem = only(problems_of(subjects))
    assert (problem.subject, problem.check) == ("d", "place")
    assert "most stacks of this cohort cover 60 mm, but this one covers 42 mm. Complete the stack" in problem.message
    assert capsys.readouterr().err.splitlines() == [
        "cohort a: high: e: most stacks of this cohort cover 60 mm, but this one covers 51 mm. "
        "Check that it is complete."
    ]


def test_stacks_of_few_thick_and_of_many_thin_slices_show_the_same_head(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    thick, thin = AFFINE.copy(), []
    thick[2, 2] = 6
    for number in range(12):
        thin.append(save(tmp_path / f"a/{number}.nii", noise(4, 5, 1), stack_affine(number)))
    stack = []
    for number in range(6):
        placed = thick.copy()
        placed[2, 3] += 6 * number
        stack.append(save(tmp_path / f"b/{number}.nii", noise(4, 5, 1) + 3, placed))
    assert problems_of([subject("a", thin), subject("b", stack)]) == []


def test_machine_errors_are_not_blamed_on_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "1.nii.gz")

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(header_module, "read_start", stale)
    with pytest.raises(RunError, match=r"the file cannot be read: .*Stale"):
        problems_of([subject("1", path)])


def test_a_copy_of_a_stack_that_lacks_slices_is_a_problem_of_both(tmp_path):
    (tmp_path / "a").mkdir()
    whole = save_stack(tmp_path / "a", 8)
    copies = [tmp_path / f"copy{number}.nii.gz" for number in range(7)]
    for path, copy in zip(whole, copies, strict=False):
        copy.write_bytes(path.read_bytes())
    problems = problems_of([subject("1", whole), subject("2", copies), subject("3", save(tmp_path / "c.nii.gz"))])
    assert [(p.subject, p.field, p.check) for p in problems] == [("1", "high", "same"), ("2", "high", "same")]
    assert "7 of the 8 slices of this stack also belong to the high field of another subject" in problems[0].message
    assert problems[1].file == f"{copies[0]} = {whole[0]} (a 1)"


def test_exchanged_fields_raise_a_doubt(tmp_path):
    fine, coarse = save(tmp_path / "1.nii", affine=np.eye(4)), save(tmp_path / "2.nii", noise(4, 5, 7))
    assert {p.check for p in problems_of([subject("1", coarse, fine)])} == {"place", "resolution"}
    assert all(p.is_doubt for p in problems_of([subject("1", coarse, fine)]))
    assert [p.check for p in problems_of([subject("1", fine, coarse)])] == ["place"]


@pytest.mark.parametrize(("num_planes", "is_doubt"), [(8, True), (9, False), (601, True)])
def test_a_field_of_view_that_cannot_show_a_head_is_a_doubt(tmp_path, num_planes, is_doubt):
    whole = replace(subject("1", save(tmp_path / "1.nii", noise(12, 12, num_planes), np.eye(4))), fit="crop_pad")
    assert [(p.check, p.is_doubt) for p in problems_of([whole])] == [("values", True)] * is_doubt
