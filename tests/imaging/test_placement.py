"""Two images are brought together in the space that both name, and if there is none, somebody is told."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from header_files import enhance_says, shard_says
from heads import model_card

from upfield.common.errors import VolumeError
from upfield.export.scans.scan import OutputLayout, expect_on_grid, finish, prepare, space_name
from upfield.imaging.header import read_header
from upfield.imaging.placement import placement_of, share_space
from upfield.imaging.regrid import read_grid
from upfield.imaging.volume_header import VolumeHeader
from upfield.sharding.cohorts.preflight import Preflight, preflight
from upfield.sharding.cohorts.subjects import Source, Subject

HERE, THERE = np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1])
THERE[:3, 3] = (0, -6, 8)
SHAPE = (20, 22, 18)


def write(path: Path, qform: int, sform: int, shape: tuple[int, ...] = SHAPE) -> Path:
    """Write a file whose qform is `HERE` and whose sform is `THERE`, except that equal codes name equal places."""
    voxels: Any = np.zeros(shape, np.float32)
    voxels[7:13, 8:14, 6:12] = np.random.default_rng(len(path.name)).random((6, 6, 6)) + 1
    voxels += np.random.default_rng(1).random(shape).astype(np.float32) / 100
    image = nib.Nifti1Image(voxels, None)
    image.set_qform(HERE, qform)
    image.set_sform(HERE if sform == qform or sform < 3 else THERE, sform)
    image.to_filename(path)
    return path


@pytest.mark.parametrize(
    ("low", "high", "space", "doubtful", "apart"),
    [
        ((1, 1), (1, 1), "scanner", False, False),
        ((1, 0), (1, 4), "scanner", False, False),
        ((1, 4), (1, 4), "scanner", False, False),
        ((0, 4), (1, 4), "mni", False, False),
        ((0, 2), (0, 2), "aligned", False, False),
        ((2, 3), (2, 3), "talairach", False, False),
        ((1, 1), (0, 2), "unknown", True, False),
        ((0, 2), (0, 4), "unknown", True, False),
        ((1, 0), (0, 4), "unknown", True, True),
        ((0, 3), (0, 4), "unknown", True, True),
        ((0, 5), (1, 1), "unknown", True, True),
        ((0, 0), (1, 1), "unknown", True, False),
        ((0, 0), (0, 0), "unknown", True, False),
    ],
)
def test_the_space_that_both_name_is_shared(tmp_path, low, high, space, doubtful, apart):
    first, second = (placement_of(read_header(write(tmp_path / f"{n}.nii", *c))) for n, c in enumerate((low, high)))
    shared = share_space(first, second, ("one", "two"))
    assert (shared.name, shared.doubt is not None, shared.is_apart) == (space, doubtful, apart)
    if space == "scanner":
        np.testing.assert_allclose(shared.affines, [HERE, HERE])


def checked(
    tmp_path: Path, low: Path, high: Path, fit: Any = "crop_pad", align: Any = "none", **others: Any
) -> Preflight:
    sources = [Source((path,), False) for path in (high, low)]
    return preflight([Subject("a", "s", "s", "train", sources[0], sources[1], fit, (), align, **others)], jobs=1)


def spoken(found: Preflight) -> list[tuple[str, str]]:
    return [(p.check, p.message) for p in found.problems if p.check in ("space", "affine")]


def test_a_pair_is_loaded_in_the_space_that_both_name(tmp_path):
    found = checked(tmp_path, write(tmp_path / "low.nii", 1, 1), write(tmp_path / "high.nii", 1, 4))
    (subject,) = found.subjects
    assert spoken(found) == []
    assert subject.low is not None
    assert subject.space == "scanner"
    np.testing.assert_allclose(subject.main_source.header.affine, HERE)
    np.testing.assert_allclose(subject.low.header.affine, HERE)


def test_a_pair_in_spaces_that_may_differ_is_a_doubt_and_one_in_different_spaces_a_problem(tmp_path):
    scanner, mni = write(tmp_path / "scanner.nii", 1, 0), write(tmp_path / "mni.nii", 0, 4)
    aligned, nowhere = write(tmp_path / "aligned.nii", 0, 2), write(tmp_path / "nowhere.nii", 0, 0)
    ((check, message),) = spoken(checked(tmp_path, scanner, mni))
    assert check == "affine"
    assert (
        "name different spaces: the low field names scanner (code 1), and the high field names mni (code 4), so the two"
        in message
    )
    ((check, message),) = spoken(checked(tmp_path, scanner, aligned))
    assert check == "space"
    ((check, message),) = spoken(checked(tmp_path, nowhere, scanner, orientation="RAS"))
    assert (check, "the header of the low field does not state its position" in message) == ("space", True)
    # `resize` does not use positions, and a registration corrects all but the scale of a template.
    assert spoken(checked(tmp_path, scanner, mni, fit="resize")) == []
    assert spoken(checked(tmp_path, scanner, aligned, align="rigid")) == []
    assert [check for check, _ in spoken(checked(tmp_path, scanner, mni, align="rigid"))] == ["space"]


def test_fields_whose_place_nobody_knows_and_that_do_not_overlap_are_a_problem(tmp_path):
    nowhere, far = write(tmp_path / "nowhere.nii", 0, 0), write(tmp_path / "far.nii", 1, 0)
    image: Any = nib.load(far)
    moved = HERE.copy()
    moved[:3, 3] = 90
    image.set_qform(moved, 1)
    image.to_filename(tmp_path / "farther.nii")
    ((check, _),) = spoken(checked(tmp_path, nowhere, tmp_path / "farther.nii", orientation="RAS"))
    assert check == "affine"


def test_slices_use_the_space_that_all_name_and_other_stacks_are_a_doubt(tmp_path):
    def stack(codes: list[tuple[int, int]]) -> list[Path]:
        paths = []
        for number, (qform, sform) in enumerate(codes):
            image = nib.Nifti1Image(np.random.default_rng(number).random((20, 22, 1), np.float32), None)
            place = HERE.copy()
            place[2, 3] = 2 * number
            image.set_qform(place, qform)
            image.set_sform(place, sform)
            image.to_filename(tmp_path / f"{number}.nii")
            paths.append(tmp_path / f"{number}.nii")
        return paths

    def found(codes: list[tuple[int, int]]) -> tuple[list[str], list[int]]:
        paths = stack(codes)
        subject = Subject("a", "s", "s", "train", Source(tuple(paths), True), None, "resize", ())
        header = VolumeHeader.of([read_header(path) for path in paths])
        checks = [p.check for p in preflight([subject], jobs=1).problems if p.check not in ("resolution", "place")]
        return checks, [code for code, _ in header.spaces]

    assert found([(1, 1)] * 10) == ([], [1])
    assert found([(1, 4)] * 10) == ([], [4, 1])
    # The cohort's own check reports a slice whose codes differ from those of the others.
    assert found([(1, 4)] * 9 + [(1, 0)]) == (["slice"], [1])
    assert found([(0, 1)] * 9 + [(0, 2)]) == (["slice", "space"], [])


def test_like_uses_the_shared_space_and_refuses_a_grid_in_another_one(tmp_path):
    scan = prepare(write(tmp_path / "scan.nii", 1, 0), model_card(), "scan")
    grids = {
        n: read_grid(write(tmp_path / f"{n}.nii", *c)) for n, c in {"both": (1, 4), "mni": (0, 4), "al": (0, 2)}.items()
    }
    assert expect_on_grid(scan, grids["both"], "scan") is None
    layout = OutputLayout(like=grids["both"])
    placed = finish(scan, scan.low, layout)
    # The head is where the other image has it, although its sform leads elsewhere.
    centre = [
        np.mean(np.argwhere(v > 0.5), axis=0) for v in (placed.voxels, np.asarray(_voxels(tmp_path / "both.nii")))
    ]
    np.testing.assert_allclose(centre[0], centre[1], atol=0.3)
    np.testing.assert_allclose(placed.affine, THERE)
    assert space_name(scan, layout) == "scanner"
    with pytest.raises(
        VolumeError, match=r"the scan names scanner \(code 1\), and mni.nii names mni \(code 4\). Register the two"
    ):
        expect_on_grid(scan, grids["mni"], "scan")
    doubt = expect_on_grid(scan, grids["al"], "scan")
    assert doubt is not None
    assert doubt.endswith("they are assumed to be in the same place")


def _voxels(path: Path) -> Any:
    image: Any = nib.load(path)
    return image.dataobj


def test_forms_that_contradict_each_other_within_one_space_are_reported_everywhere(tmp_path):
    path = write(tmp_path / "scan.nii", 1, 1)
    image: Any = nib.load(path)
    image.set_sform(THERE, 1)
    image.to_filename(tmp_path / "other.nii")
    assert "differ by up to 0 degrees and 10 mm" in shard_says(tmp_path / "other.nii")[1][0]
    assert "differ by up to 0 degrees and 10 mm" in enhance_says(tmp_path / "other.nii")[1][0]
