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
def test_two_scans_that_would_become_one_file_are_refused(tmp_path: Path, other: str) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "in" / other)
    with pytest.raises(InputError, match=r"would be written twice, for .*a\..* and for .*a\..*\. Rename"):
        plan_outputs([tmp_path / "in"], tmp_path / "out")


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
