import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from built_sets import arguments, contents

from upfield.common.errors import RunError
from upfield.imaging.air import estimate_air
from upfield.imaging.volume import read_stack
from upfield.sharding.building import block_builder, build
from upfield.sharding.building.voxel_doubts import find_doubts, summarise_stripped, unlike_brains
from upfield.sharding.cohorts.subjects import Source, Subject
from upfield.sharding.cohorts.volume_check import check_volume
from upfield.sharding.configuration import GeometryConfig
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest


@pytest.fixture
def doubtful(cohort):
    """A cohort in which one high field is a label map."""
    path = min((cohort / "IXI-T1").iterdir())
    image = nib.Nifti1Image.from_filename(path)
    nib.Nifti1Image(np.asarray(image.dataobj) // 200, image.affine).to_filename(path)
    return cohort


def test_doubts_about_voxels_reach_terminal_report_and_manifest(run_cli, doubtful, tmp_path):
    code, out, err = run_cli(main, *arguments(doubtful, tmp_path / "shards"))
    assert code == 0
    assert "1 doubt of 1 subject\nThese subjects are still included" in err
    assert "in doubt: 1 subject." in out
    (doubt,) = json.loads((tmp_path / "shards.problems.json").read_text())["doubts"]
    assert (doubt["subject"], doubt["check"], doubt["field"]) == ("IXI002", "labels", "high")
    (listed,) = read_manifest(tmp_path / "shards").doubts
    assert listed["problems"][0]["reason"] == doubt["message"]


@pytest.mark.parametrize("codes", ["RAS", "LPI"])
def test_the_file_of_a_foreign_slice_is_named(tmp_path, codes):
    places = np.meshgrid(*(np.linspace(-1, 1, size) for size in (40, 44, 20)), indexing="ij")
    head = (900 * (np.linalg.norm(places, axis=0) < 0.9) * (2 + np.sin(9 * places[0] + places[2]))).astype(np.int16)
    head[:, :, 7] = np.roll(head[:, :, 7], 6, axis=0)
    flip = -1 if codes == "LPI" else 1
    paths = [tmp_path / f"{number:02d}.nii" for number in range(20)]
    for number, path in enumerate(paths):
        affine = np.diag([flip, flip, flip, 1.0])
        affine[2, 3] = flip * number
        nib.Nifti1Image(head[:, :, number : number + 1], affine).to_filename(path)
    stack = subject(Source(tuple(paths), stacked=True))
    source = check_volume(stack, "high", stack.main_source).volume
    assert source is not None
    volume = read_stack(paths)
    found = find_doubts(subject(source), {"high": volume}, {"high": estimate_air(volume.voxels)}, GeometryConfig())
    (doubt,) = [doubt for doubt in found if doubt.check == "slice"]
    assert doubt.file == str(paths[7])
    assert "counted from 0: 7)" in doubt.message


def subject(source):
    return Subject("a", "1", "1", "train", source, None, "resize", ())


def test_a_resumed_build_keeps_the_doubts_whatever_the_jobs(run_cli, doubtful, tmp_path, monkeypatch):
    def interrupted(*_):
        raise RunError("interrupted")

    assert run_cli(main, *arguments(doubtful, tmp_path / "whole"), "--jobs", 2)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_manifest", interrupted)
        assert run_cli(main, *arguments(doubtful, tmp_path / "resumed"))[0] == 1
    monkeypatch.setattr(block_builder, "make_pairs", interrupted)
    assert run_cli(main, *arguments(doubtful, tmp_path / "resumed"))[0] == 0
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert read_manifest(tmp_path / "resumed").doubts


def test_brains_without_skull_beside_whole_heads_are_doubted():
    def subject(name, *fields):
        sources = {field: Source((Path(f"{name}.nii"),), stacked=False) for field in fields}
        return Subject("c", name, name, "train", sources["high"], sources.get("low"), "crop_pad", ())

    subjects = [subject("a", "high"), subject("b", "high"), subject("c", "high"), subject("d", "low", "high")]
    stripped = [{"cohort": "c", "subject": name, "high": name == "b"} for name in "abc"]
    stripped.append({"cohort": "c", "subject": "d", "high": False, "low": True})
    found = unlike_brains(stripped, subjects)
    assert [(problem.subject, problem.field) for problem in found] == [("b", "high"), ("d", "low")]
    assert all(problem.is_doubt for problem in found)
    assert unlike_brains([tree | {"high": True, "low": True} for tree in stripped], subjects) == []
    assert summarise_stripped(stripped) == {"c": "some"}
