"""Which scans are found, and that nothing of anybody else's is written over."""

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


def plan(scans: list[Path], out: Path) -> dict[str, str]:
    found = plan_outputs(scans, out)
    assert not found.problems
    return {job.scan.name: str(job.target.relative_to(out)) for job in found.jobs}


def test_what_an_earlier_run_wrote_into_the_folder_is_no_scan(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii", tmp_path / "deep" / "b.mgz", tmp_path / "out" / "c.nii.gz")
    assert plan([tmp_path], tmp_path / "out") == {"a.nii": "a.nii.gz", "b.mgz": "deep/b.nii.gz"}


def test_what_has_been_enhanced_into_another_folder_is_no_scan(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii", tmp_path / "before" / "a.nii.gz")
    (tmp_path / "before" / "a.json").write_text(json.dumps({"source_sha256": "", "model_sha256": "", "note": ""}))
    found = plan_outputs([tmp_path], tmp_path / "out")
    assert [job.scan for job in found.jobs] == [tmp_path / "a.nii"]
    assert found.enhanced == [tmp_path / "before" / "a.nii.gz"]
    with pytest.raises(InputError, match="found enhanced ones only"):
        plan_outputs([tmp_path / "before"], tmp_path / "out")


def test_scans_within_the_outputs_folder_are_found(tmp_path: Path) -> None:
    touch(tmp_path / "scans" / "a.nii.gz")
    assert plan([tmp_path / "scans"], tmp_path) == {"a.nii.gz": "a.nii.gz"}


def test_outputs_do_not_go_among_the_scans(tmp_path: Path) -> None:
    touch(tmp_path / "a.nii")
    with pytest.raises(InputError, match="expected another folder than the scans'"):
        plan_outputs([tmp_path], tmp_path)


@pytest.mark.parametrize("other", ["a.nii.gz", "a.mgz", "a.NII"])
def test_two_scans_that_would_become_one_file_are_refused(tmp_path: Path, other: str) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "in" / other)
    with pytest.raises(InputError, match=r"expected one scan for each output, found .*a\..* and .*a\..*; rename"):
        plan_outputs([tmp_path / "in"], tmp_path / "out")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "elsewhere" / "b.nii")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert plan([tmp_path / "in"], tmp_path / "out") == {"a.nii": "a.nii.gz", "b.nii": "link/b.nii.gz"}


def test_a_scan_with_a_sidecar_of_another_program_is_not_written_over(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.nii", tmp_path / "bids" / "a.nii.gz")
    sidecar = tmp_path / "bids" / "a.json"
    sidecar.write_text(json.dumps({"RepetitionTime": 2.3}))
    with pytest.raises(InputError, match="expected a new file or an enhanced one, found a scan"):
        plan_outputs([tmp_path / "in"], tmp_path / "bids")
    (tmp_path / "bids" / "a.nii.gz").unlink()
    with pytest.raises(InputError, match=r"a.json: expected a new file or one of enhance's"):
        plan_outputs([tmp_path / "in"], tmp_path / "bids")
    sidecar.write_text(json.dumps({"source_sha256": "", "model_sha256": "", "note": ""}))
    assert plan([tmp_path / "in"], tmp_path / "bids") == {"a.nii": "a.nii.gz"}


def test_provenance_stands_beside_its_scan() -> None:
    for name in ("a.b.nii.gz", "a.b.nii", "a.b.NII.GZ"):
        assert provenance_path(Path("x") / name) == Path("x/a.b.json")


def test_what_is_no_provenance_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_provenance(path) is None
    for text in ("", "[]", "3", '{"model_sha256": ""}', "\x00"):
        path.write_text(text)
        assert read_provenance(path) is None
    path.write_bytes(b"\xff\xfe")
    assert read_provenance(path) is None
