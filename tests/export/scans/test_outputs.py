"""The scans in a folder are found, enhanced scans are skipped, and no original file is overwritten."""

import json
from pathlib import Path

import pytest

from upfield.common.errors import InputError
from upfield.export.scans.outputs import plan_outputs
from upfield.export.scans.provenance import provenance_path, read_provenance


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def targets(scans: list[Path], out: Path) -> dict[str, str]:
    plan = plan_outputs(scans, out)
    assert not plan.problems
    return {task.scan.name: str(task.target.relative_to(out)) for task in plan.tasks}


def test_the_output_folder_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii", tmp_path / "deep" / "b.mgz", tmp_path / "out" / "c.nii.gz")
    assert targets([tmp_path], tmp_path / "out") == {"a.nii": "a.nii.gz", "b.mgz": "deep/b.nii.gz"}


def test_enhanced_scans_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii", tmp_path / "before" / "a.nii.gz")
    (tmp_path / "before" / "a.json").write_text(json.dumps({"source_sha256": "", "model_sha256": "", "note": ""}))
    plan = plan_outputs([tmp_path], tmp_path / "out")
    assert [task.scan for task in plan.tasks] == [tmp_path / "a.nii"]
    assert plan.enhanced == [tmp_path / "before" / "a.nii.gz"]
    with pytest.raises(InputError, match="contains only enhanced scans"):
        plan_outputs([tmp_path / "before"], tmp_path / "out")


def test_scans_in_a_folder_inside_the_output_folder_are_found(tmp_path: Path) -> None:
    touch(tmp_path / "scans" / "a.nii.gz")
    assert targets([tmp_path / "scans"], tmp_path) == {"a.nii.gz": "a.nii.gz"}


def test_the_folder_of_the_scans_cannot_be_the_output(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii")
    with pytest.raises(InputError, match="is the folder of the scans"):
        plan_outputs([tmp_path], tmp_path)


@pytest.mark.parametrize("other", ["a.nii.gz", "a.mgz", "a.NII"])
def test_scans_that_would_become_one_file_are_left_out_and_named(tmp_path: Path, other: str) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "in" / other)
    with pytest.raises(InputError, match=r"a\.\w+: .*would be written twice, for this scan and for .*a\.\w+"):
        plan_outputs([tmp_path / "in"], tmp_path / "out")
    touch(tmp_path / "in" / "b.nii")
    plan = plan_outputs([tmp_path / "in"], tmp_path / "out")
    assert [task.scan.name for task in plan.tasks] == ["b.nii"]
    assert sorted(str(problem).split(": ")[0] for problem in plan.problems) == sorted(
        str(tmp_path / "in" / name) for name in ("a.nii", other)
    )


def test_a_scan_with_several_names_is_enhanced_once_under_its_real_name(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "real" / "x.nii", tmp_path / "in" / "z.nii", tmp_path / "else" / "y.nii")
    (tmp_path / "in" / "a-link").symlink_to("real")
    (tmp_path / "in" / "b.nii").symlink_to("z.nii")
    (tmp_path / "in" / "c.nii").symlink_to("c.nii")
    for name in ("1", "2"):
        (tmp_path / "in" / f"out{name}.nii").symlink_to(tmp_path / "else" / "y.nii")
    plan = plan_outputs(
        [tmp_path / "in", tmp_path / "in" / "real" / "x.nii", tmp_path / "in" / "." / "z.nii"], tmp_path
    )
    inside = [str(task.target.relative_to(tmp_path)) for task in plan.tasks]
    assert inside == ["c.nii.gz", "out1.nii.gz", "z.nii.gz", "real/x.nii.gz"]
    assert {(path.name, other.name) for path, other in plan.repeated} == {
        ("b.nii", "z.nii"),
        ("out2.nii", "out1.nii"),
        ("x.nii", "x.nii"),
        ("z.nii", "z.nii"),
    }


def test_a_link_given_before_its_scan_does_not_take_its_place(tmp_path: Path) -> None:
    touch(tmp_path / "x.nii")
    (tmp_path / "link.nii").symlink_to("x.nii")
    assert targets([tmp_path / "link.nii", tmp_path / "x.nii"], tmp_path / "out") == {"x.nii": "x.nii.gz"}
    assert targets([tmp_path / "link.nii"], tmp_path / "out") == {"link.nii": "link.nii.gz"}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "elsewhere" / "b.nii")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert targets([tmp_path / "in"], tmp_path / "out") == {"a.nii": "a.nii.gz", "b.nii": "link/b.nii.gz"}


def test_a_sidecar_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "bids" / "a.nii.gz")
    sidecar = tmp_path / "bids" / "a.json"
    sidecar.write_text(json.dumps({"RepetitionTime": 2.3}))
    with pytest.raises(InputError, match="exists and is not an enhanced scan"):
        plan_outputs([tmp_path / "in"], tmp_path / "bids")
    (tmp_path / "bids" / "a.nii.gz").unlink()
    with pytest.raises(InputError, match=r"a.json exists and was not written by upfield enhance"):
        plan_outputs([tmp_path / "in"], tmp_path / "bids")
    sidecar.write_text(json.dumps({"source_sha256": "", "model_sha256": "", "note": ""}))
    assert targets([tmp_path / "in"], tmp_path / "bids") == {"a.nii": "a.nii.gz"}


def test_provenance_lies_beside_its_scan() -> None:
    for name in ("a.b.nii.gz", "a.b.nii", "a.b.NII.GZ"):
        assert provenance_path(Path("x") / name) == Path("x/a.b.json")


def test_files_of_other_programs_are_not_provenance(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_provenance(path) is None
    for text in ("", "[]", "3", '{"model_sha256": ""}', "\x00"):
        path.write_text(text)
        assert read_provenance(path) is None
    path.write_bytes(b"\xff\xfe")
    assert read_provenance(path) is None
    path.write_text("[" * 10**6)
    assert read_provenance(path) is None
