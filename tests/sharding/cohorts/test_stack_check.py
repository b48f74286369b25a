import numpy as np
import pytest
from small_scans import AFFINE, noise, only, problems_of, save, save_stack, stack_affine, subject


def test_a_stack_of_bad_slices_is_one_row_that_counts_them(tmp_path):
    paths = save_stack(tmp_path, 20)
    for number in (3, 7, 8):
        paths[number].write_bytes(b"")
    problem = only(problems_of([subject("1", paths)]))
    assert problem.check == "header"
    assert problem.file == str(paths[3])
    assert problem.message.startswith("3 of 20 slices are affected; in the first one, the file is empty")


def test_a_volume_among_slices_and_a_single_slice_are_problems(tmp_path):
    paths = save_stack(tmp_path)
    problem = only(problems_of([subject("1", paths[:1])]))
    assert (problem.check, problem.message[:35]) == ("slices", "expected at least 2 slices, found 1")
    save(paths[2], noise(4, 5, 6))
    problem = only(problems_of([subject("1", paths)]))
    assert (problem.check, problem.file) == ("header", str(paths[2]))
    assert "1 of 6 slices are affected; in the first one, expected one slice, found shape (4, 5, 6)" in problem.message


def turned(angle_deg):
    turn = np.eye(4)
    angle = np.deg2rad(angle_deg)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (noise(4, 6, 1), AFFINE, r"expected a slice of shape (4, 5) like most of its stack, found (4, 6)"),
        (noise(4, 1, 5), AFFINE, "expected a slice across axis 2 like most of its stack, found one across axis 1"),
        (noise(4, 5, 1), turned(10), "one of its axes is rotated by 10.0 degrees from that of most slices"),
        (noise(4, 5, 1), AFFINE @ np.diag([1, 2, 1, 1]), "expected voxels of 1.5 x 2 x 3 mm as in most slices"),
    ],
)
def test_a_slice_of_another_scan_is_a_problem_of_the_stack(tmp_path, voxels, affine, message):
    paths = save_stack(tmp_path)
    save(paths[4], voxels, affine)
    problem = only(problems_of([subject("1", paths)]))
    assert (problem.check, problem.file) == ("slices", str(paths[4]))
    assert message in problem.message


@pytest.mark.parametrize("foreign", [0, 4, 5])
@pytest.mark.parametrize(
    ("move", "check", "message"),
    [
        (np.array([4, 0, 0]), "steps", "(counted from 0) is 4.00 mm away from its place"),
        (np.array([0, 0, 50]), "steps", "(counted from 0) is 50.00 mm away from its place"),
        (None, "slices", "rotated by 10.0 degrees from that of most slices"),
    ],
)
def test_a_slice_that_lies_elsewhere_is_named_even_if_it_is_the_first(tmp_path, foreign, move, check, message):
    paths = save_stack(tmp_path)
    placed = stack_affine(foreign)
    if move is None:
        placed = turned(10) + placed - AFFINE
    else:
        placed[:3, 3] += move
    save(paths[foreign], noise(4, 5, 1), placed)
    problem = only(problems_of([subject("1", paths)]))
    assert (problem.check, problem.file) == (check, str(paths[foreign]))
    assert message in problem.message


@pytest.mark.parametrize(
    ("fields", "statement"),
    [
        ({"scl_slope": 3.0}, "scaling"),
        ({"descrip": b"another"}, "description"),
        ({"sform_code": 4}, "form codes"),
    ],
)
def test_a_slice_whose_header_states_something_else_is_a_doubt(tmp_path, fields, statement):
    paths = save_stack(tmp_path, 12, scl_slope=2.0, descrip=b"patient")
    assert problems_of([subject("1", paths)]) == []
    save(paths[7], noise(4, 5, 1), stack_affine(7), **{"scl_slope": 2.0, "descrip": b"patient"} | fields)
    problem = only(problems_of([subject("1", paths)]))
    assert (problem.check, problem.file, problem.is_doubt) == ("slice", str(paths[7]), True)
    assert f"state another {statement} than all others (slice 7 is the first" in problem.message
    # If every slice states something else, that says nothing.
    for number, path in enumerate(paths):
        save(path, noise(4, 5, 1) + number, stack_affine(number), scl_slope=2.0 + number)
    assert problems_of([subject("1", paths)]) == []


@pytest.mark.parametrize("order", [[0, 1, 2, 4, 5, 6], [0, 1, 3, 2, 4, 5], [0, 1, 2, 2, 3, 4]])
def test_unevenly_spaced_slices_are_a_problem(tmp_path, order):
    paths = []
    for number, place in enumerate(order):
        placed = AFFINE.copy()
        placed[2, 3] += 3.0 * place
        paths.append(save(tmp_path / f"{number}.nii", noise(4, 5, 1), placed))
    problem = only(problems_of([subject("1", paths)]))
    assert problem.check == "steps"
    assert "the usual step is 3.00 mm, but" in problem.message


def test_slices_without_positions_or_in_descending_order_are_not_a_problem(tmp_path):
    for step_mm in (0, -3):
        (tmp_path / str(step_mm)).mkdir()
        assert problems_of([subject("1", save_stack(tmp_path / str(step_mm), step_mm=step_mm))]) == []


def test_slices_along_an_oblique_line_are_a_sheared_stack(tmp_path):
    paths = []
    for number in range(4):
        placed = AFFINE.copy()
        placed[:3, 3] += number * np.array([0, 1.0, 3.0])
        paths.append(save(tmp_path / f"{number}.nii", noise(4, 5, 1), placed))
    problem = only(problems_of([subject("1", paths)]))
    assert problem.check == "affine"
    assert "axes 1 and 2 meet at 71.6 degrees" in problem.message


def test_positions_replace_the_thickness_that_slice_headers_lack(tmp_path):
    fields = {"sform_code": 0, "pixdim": [1, 1.5, 2, 0, 0, 0, 0, 0]}
    assert problems_of([subject("1", save_stack(tmp_path, **fields))]) == []
    (tmp_path / "0").mkdir()
    assert only(problems_of([subject("1", save_stack(tmp_path / "0", step_mm=0, **fields))])).check == "spacing"
