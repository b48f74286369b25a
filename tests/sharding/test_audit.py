import json

import nibabel as nib
import numpy as np
import pytest
from made_up_heads import rayleigh_head

from upfield.sharding.audit import main
from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
from upfield.sharding.configuration import CohortConfig, GeometryConfig, ShardConfig
from upfield.sharding.shardset.sample_key import SampleKey
from upfield.sharding.shardset.shard_writer import Sample, write_shard

# A coarse grid, so that a head is large and its volume small.
SHAPE, SPACING_MM = (44, 54, 50), (4.0, 4.0, 4.0)
GEOMETRY = GeometryConfig(high_shape=SHAPE, high_spacing_mm=SPACING_MM, low_shape=SHAPE, low_spacing_mm=SPACING_MM)


def head(sigma, seed):
    return rayleigh_head(sigma, seed, SHAPE, np.array(SPACING_MM))


def write_set(root, recipes, kind="synthetic"):
    """Write a set with a volume for each of `recipes`, whose noise differs from volume to volume."""
    samples = []
    for number, recipe in enumerate(recipes):
        voxels = head(0.02 + 0.002 * number, number)
        low = (voxels / voxels.max()).astype(np.float16)
        record = {"parameters": {"recipe": recipe} if recipe != "report" else {}}
        keys = (str(SampleKey("made", f"s{number}", kind, 0, x)) for x in range(SHAPE[0]))
        samples += [Sample(key, low[x][None], low[x][None], record) for x, key in enumerate(keys)]
    entry = write_shard(root, "train/000000", samples)
    config = ShardConfig("out", [CohortConfig("made", "{subject}.nii.gz")], geometry=GEOMETRY)
    write_manifest(root, content_config(config), Addition([], [entry]), None)
    return root


@pytest.fixture(scope="module")
def made_set(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("made"), ["report", "physics"] * 5 + ["report", "other"])


def write_scan(path, sigma):
    nib.Nifti1Image(2000 * head(sigma, 99), np.diag([*SPACING_MM, 1])).to_filename(path)
    return path


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scan_T1w.nii.gz", 0.025)


def test_a_scan_like_the_synthetic_volumes_is_inside_and_a_noisy_one_is_not(made_set, scan, tmp_path, run_cli):
    noisy = write_scan(tmp_path / "noisy.nii.gz", 0.06)
    code, out, err = run_cli(main, made_set, scan, noisy, "--out", tmp_path / "deep/audit.json")
    assert code == 0, err
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert "warning: too few volumes of other: 1. Build a set with more of them." in out
    assert "scan_T1w.nii.gz (T1w) among 6 synthetic volumes (report, contrast not known)" in out
    assert "noisy.nii.gz among 5 synthetic volumes (physics)" in out
    tree = json.loads((tmp_path / "deep/audit.json").read_text())
    alike, noisier = (each["coverage"] for each in tree["scans"])
    for like, unlike in zip(alike, noisier, strict=True):
        assert all(like["measures"][name]["inside"] for name in ("air_spread", "snr", "fill_x"))
        assert unlike["measures"]["air_spread"]["percentile"] == 100
        assert not unlike["measures"]["air_spread"]["inside"]
    assert noisier[1]["measures"]["snr"]["change"].startswith("raise the upper end of synthetic.noise_std")
    assert (tmp_path / "deep/audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"scans": []}, "SCANS is missing"),
        (lambda a: a | {"out": a["out"].with_suffix(".csv")}, "must end in .json"),
        (lambda a: a | {"out": a["scans"][0] / "audit.json"}, "cannot write there"),
        (lambda a: a | {"scans": [a["scans"][0].with_name("no.nii.gz")]}, "no.nii.gz"),
        (lambda a: a | {"flags": ["--volumes", "3"]}, "volumes: expected at least 5, found 3"),
        (lambda a: a | {"flags": ["--split", "val"]}, "expected at least 5 complete synthetic low-field volumes"),
        (lambda a: a | {"shards": a["out"].parent}, "manifest"),
    ],
)
def test_wrong_input_is_refused_before_the_work(made_set, scan, tmp_path, run_cli, change, message):
    given = change({"shards": made_set, "scans": [scan], "out": tmp_path / "audit.json", "flags": []})
    code, out, err = run_cli(main, given["shards"], *given["scans"], "--out", given["out"], *given["flags"])
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.rglob("audit.*"))


def test_scans_of_the_same_name_are_told_apart_by_their_path(made_set, scan, tmp_path, run_cli):
    (tmp_path / "other").mkdir()
    scans = [scan, write_scan(tmp_path / "other" / scan.name, 0.06)]
    code, out, err = run_cli(main, made_set, *scans, "--out", tmp_path / "audit.json", "--volumes", 12)
    assert code == 0, err
    assert f"{scans[1]} (T1w) among" in out
    tree = json.loads((tmp_path / "audit.json").read_text())
    assert [each["scan"] for each in tree["scans"]] == list(map(str, scans))


def test_a_set_of_real_pairs_is_refused(scan, tmp_path, run_cli):
    real = write_set(tmp_path / "real", ["report"] * 5, kind="real")
    code, _, err = run_cli(main, real, scan, "--out", tmp_path / "audit.json")
    assert code == 2
    assert "found 0. Build a set with `synthetic` variants" in err
