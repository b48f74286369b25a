"""Mix-ups of runs, models, scans and sets are named, with the remedy."""

from pathlib import Path

import pytest

import upfield
from upfield.common.errors import InputError
from upfield.common.places import is_dicom, recognise, refuse_other_than_scan, shown_whole
from upfield.export.pretrained.packaged_model import find_model
from upfield.sharding.shardset.manifest import read_manifest


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder with one of each kind, which is the current folder."""
    files = ("scan.nii.gz", "model.onnx", "run/best/model.safetensors", "set/manifest.json", "set/train/000000.tar")
    for name in (*files, "cohort/cohorts.yaml", "series/1.dcm", "other/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "magic").write_bytes(bytes(128) + b"DICM")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "whole"),
    [
        ("scan.nii.gz", "a scan", "scan.nii.gz"),
        ("model.onnx", "a model file", "model.onnx"),
        ("run", "the folder of a run", "run"),
        ("run/best", "a part of a run", "run"),
        ("run/best/model.safetensors", "a part of a run", "run"),
        ("set", "a shard set", "set"),
        ("set/manifest.json", "a part of a shard set", "set"),
        ("set/train", "a part of a shard set", "set"),
        ("cohort", "the folder of a cohort", "cohort"),
        ("cohort/cohorts.yaml", "a configuration file", "cohort/cohorts.yaml"),
        ("series", "a DICOM series", "series"),
        ("magic", "a DICOM file", "magic"),
    ],
)
def test_a_place_is_recognised(places, name, kind, whole):
    found = recognise(Path(name))
    assert found is not None
    assert (found.kind, shown_whole(found)) == (kind, Path(whole))


@pytest.mark.parametrize("name", ["other", "other/file", "absent"])
def test_other_places_are_not_recognised(places, name):
    assert recognise(Path(name)) is None
    assert not is_dicom(Path(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("set/manifest.json", "set/manifest.json is only a part of a shard set. Name the folder of the set, set."),
        ("set/train", "Name the folder of the set, set."),
        ("cohort", "Build one with upfield shard --config cohort/cohorts.yaml --out SHARDS"),
        ("run", "run is the folder of a run, not a shard set."),
        ("absent", "absent: there is no shard set here, and the folder does not exist."),
    ],
)
def test_what_is_named_in_place_of_a_set_is_explained(places, name, message):
    with pytest.raises(InputError) as caught:
        read_manifest(Path(name))
    assert message in str(caught.value)


def test_a_run_in_place_of_a_model_is_refused_with_the_command_that_exports_it(places):
    with pytest.raises(InputError, match=r"run is the folder of a run, not a model file\. Write one with upfield"):
        find_model(Path("run"))
    with pytest.raises(InputError, match=r"scan\.nii\.gz is a scan, not a model"):
        find_model(Path("scan.nii.gz"))
    # From Python, a run can be loaded, too.
    assert find_model(Path("run"), or_run=True) == Path("run")
    with pytest.raises(InputError, match=r"set is a shard set, not a model"):
        find_model(Path("set"), or_run=True)


def test_a_dicom_series_in_place_of_a_scan_is_one_line(places):
    with pytest.raises(InputError, match=r"series is a DICOM series, not a NIfTI file\. Convert it first, for example"):
        refuse_other_than_scan(Path("series"))
    with pytest.raises(InputError, match="is a DICOM series, not a NIfTI file"):
        upfield.read_scan("series")
