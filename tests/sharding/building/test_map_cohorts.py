import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from built_sets import arguments, contents, records

from upfield.distributed.samples.webdataset_stream import StreamPlace, StreamSeed, decode_sample, stream_samples
from upfield.sharding.configuration import CohortConfig, GeometryConfig, ShardConfig
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.verify import main as verify

CONFIG = """\
geometry: {low_shape: [12, 14, 6], low_spacing_mm: [1.6, 1.6, 5], high_shape: [20, 24, 28], high_spacing_mm: [1, 1, 1]}
samples_per_shard: 32
subjects_per_block: 2
"""
# Heads as small as these must not be cut, because little would be left of them.
MAPS = """\
synthetic: {recipe: both, heads: {stripped_rate: 0, defaced_rate: 0, cut_rate: 0}}
keep_labels: true
cohorts:
  - name: maps
    labels: maps/{subject}.nii.gz
    synthetic: 2
    split: {val: [b], test: [c]}
"""


def head_map(size=0.0):
    """Return labels `(24, 28, 30)` int16: skin around fluid, cortex and the white matter of both sides."""
    i, j, k = np.ogrid[-1:1:24j, -1:1:28j, -1:1:30j]
    away = np.sqrt(i**2 + j**2 + k**2)
    labels = np.zeros(away.shape, np.int16)
    for number, limit in ((511, 0.95), (24, 0.8), (3, 0.7), (2, 0.5 + size)):
        labels[away < limit] = number
    labels[13:][labels[13:] == 3] = 42
    labels[13:][labels[13:] == 2] = 41
    return labels


def save(path, labels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(labels, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def write_maps(folder, config=MAPS):
    for number, name in enumerate("abc"):
        save(folder / f"maps/{name}.nii.gz", head_map(number / 20))
    (folder / "cohorts.yaml").write_text(CONFIG + config)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return write_maps(tmp_path_factory.mktemp("maps"))


@pytest.fixture(scope="module")
def built(maps, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "shards"
    volumes = out.with_name("volumes")
    assert main(arguments(maps, out, "--save_volumes", str(volumes))) == 0
    return out


def volumes_of(root, split="train"):
    """Return the low field, high field and labels `(X, Y, Z)` of each variant of a split with one subject."""
    opened = ShardSplit(root, split)
    low, high = opened.read_checked(range(opened.num_samples))
    labels = np.array([opened.read_labels(number) for number in range(opened.num_samples)])
    index = opened.index
    for place in range(len(index.units)):
        chosen = np.flatnonzero(index.unit_numbers == place)
        chosen = chosen[np.argsort(index.slices[chosen])]
        yield index.units[place], low[chosen, 0], high[chosen, 0], labels[chosen, 0]


def test_each_variant_is_another_head_whose_fields_and_labels_agree(built):
    (first, low, high, labels), (second, _, other, _) = sorted(volumes_of(built), key=lambda item: item[0])
    assert (first[2:], second[2:]) == (("synthetic", 0), ("synthetic", 1))
    assert low.shape == high.shape == labels.shape == (20, 24, 28)
    assert not np.array_equal(high, other)
    assert {0, 2, 3, 24, 41, 42, 511} >= set(np.unique(labels))
    brain, air = np.isin(labels, (2, 3, 41, 42)), labels == 0
    assert high[brain].mean() > 2 * high[air].mean()
    assert low[brain].mean() > 2 * low[air].mean()


def test_the_maps_subjects_stay_in_their_splits_and_have_only_synthetic_pairs(built):
    manifest = read_manifest(built)
    splits = {split: [tree["subject"] for tree in manifest.subjects(split)] for split in ("train", "val", "test")}
    assert splits == {"train": ["a"], "val": ["b"], "test": ["c"]}
    assert {record["kind"] for split in splits for record in records(built, split)} == {"synthetic"}
    assert manifest.contrasts == ("T1w",)
    assert {"labels", "labels_voxels"} < manifest.sources[0].keys()


def test_records_hold_what_was_drawn_and_recipes_alternate(built):
    drawn = {record["variant"]: record["parameters"] for record in records(built, "train")}
    assert drawn[0]["recipe"] == "physics"
    assert {"head", "high_field", "snr", "sequence"} < drawn[0].keys()
    assert sorted(drawn[1]) == ["gamma", "head", "high_field", "noise_std", "sigma_vox"]
    assert drawn[0]["head"] != drawn[1]["head"]


def test_a_set_with_labels_passes_verification_and_a_wrong_label_is_found(built, tmp_path, capsys):
    assert verify([str(built)]) == 0
    tar = built / "val/000000.tar"
    data, index = bytearray(tar.read_bytes()), ShardSplit(built, "val").index
    place = index.labels_offset(0) + index.labels_bytes - 1
    try:
        tar.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
        assert verify([str(built)]) == 2
        assert "labels: expected labels of at least 0, found -" in capsys.readouterr().out
    finally:
        tar.write_bytes(data)


def test_training_by_webdataset_reads_samples_with_labels(built):
    opened = ShardSplit(built, "val")
    items = list(stream_samples(opened, StreamSeed(0, 0, 0), StreamPlace(0, 1, 0, 1), 40, 4))
    assert sorted(item["number"] for item in items) == list(range(40))
    low, _ = decode_sample(items[0], opened)
    np.testing.assert_array_equal(low, opened.read_checked([items[0]["number"]])[0][0])


def test_saved_volumes_of_a_map_are_the_fields_and_labels_of_each_head(built):
    folder = built.with_name("volumes") / "maps"
    names = {path.name for path in folder.iterdir()}
    assert {
        f"a_{field}-synthetic-{variant}.nii.gz" for field in ("low", "high", "labels") for variant in (0, 1)
    } < names
    (_, _, _, labels), _ = sorted(volumes_of(built), key=lambda item: item[0])
    saved = nib.Nifti1Image.from_filename(folder / "a_labels-synthetic-0.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(saved.dataobj), labels)


def test_a_cohort_of_maps_extends_a_set_of_scans(maps, tiny_shards, tmp_path):
    out = shutil.copytree(tiny_shards, tmp_path / "shards")
    before = contents(out)
    assert main(arguments(maps, out, "--synthetic.recipe", "report")) == 0
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name.endswith(".tar"))
    opened = ShardSplit(out, "train")
    carrying = {
        opened.record(number)["cohort"] for number in range(opened.num_samples) if opened.index.has_labels(number)
    }
    assert carrying == {"maps"}
    assert verify([str(out)]) == 0


def test_another_orientation_and_type_of_the_file_give_the_same_heads(built, maps, tmp_path):
    again = write_maps(tmp_path)
    labels = head_map()[::-1].transpose(2, 0, 1).astype(np.float32)
    affine = np.array([[0, -1, 0, 23], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    save(again / "maps/a.nii.gz", labels, affine)
    out = tmp_path / "shards"
    assert main(arguments(again, out)) == 0
    assert (out / "train/000000.tar").read_bytes() == (built / "train/000000.tar").read_bytes()


def with_unknown_number(folder):
    labels = head_map()
    labels[labels == 24] = 777
    save(folder / "maps/a.nii.gz", labels)
    return folder


def test_unknown_numbers_are_named_and_labels_as_explains_them(tmp_path, run_cli):
    folder, out = with_unknown_number(write_maps(tmp_path)), tmp_path / "shards"
    code, _, _ = run_cli(main, *arguments(folder, out))
    assert code == 2
    problems = json.loads((tmp_path / "shards.problems.json").read_text())["problems"]
    assert [(problem["subject"], problem["field"]) for problem in problems] == [("a", "labels")]
    assert problems[0]["message"].startswith("label 777 is unknown. ")
    assert not list(out.glob("*/*.tar")), "maps are checked before any head is rendered"
    config = folder / "cohorts.yaml"
    config.write_text(config.read_text() + "    labels_as: {777: 24}\n")
    assert main(arguments(folder, out)) == 0
    assert read_manifest(out).cohorts["maps"]["labels_as"] == {"777": 24}


def test_damaged_maps_are_left_out_if_asked_for(tmp_path):
    folder, out = write_maps(tmp_path), tmp_path / "shards"
    path = folder / "maps/b.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    save(folder / "maps/c.nii.gz", head_map(0.1) + np.float32(0.5))
    assert main(arguments(folder, out, "--on_error", "skip")) == 0
    assert [tree["subject"] for tree in read_manifest(out).skipped] == ["b", "c"]
    assert verify([str(out)]) == 0


LABELS = "maps/{subject}.nii.gz"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": LABELS, "high": LABELS}, "high and labels cannot be combined"),
        ({"labels": LABELS, "low": LABELS}, "low and labels cannot be combined"),
        ({"labels": LABELS, "fit": "resize"}, "fit and labels cannot be combined"),
        ({"labels": LABELS, "align": "rigid"}, "align and labels cannot be combined"),
        ({"labels": LABELS, "contrast": "T2w"}, "rendered from label maps are T1w, found T2w. Leave out contrast."),
        ({"labels": LABELS, "synthetic": 0}, "synthetic: expected at least 1, found 0"),
        ({"labels": "maps/x.nii.gz"}, "labels: expected a pattern with {subject}"),
        ({"labels": "maps/{subject}_{slice}.nii.gz"}, "labels: expected a pattern of whole volumes"),
        ({"high": LABELS, "labels_as": {777: 24}}, "labels_as: this cohort has no label maps"),
        ({"low": LABELS}, "expected the pattern high, because pairs need a high field, found none"),
        ({}, "expected the pattern high or labels, found none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=rf"^cohort a: .*{re.escape(message)}"):
        CohortConfig("a", **settings)


def test_labels_are_kept_only_of_maps():
    with pytest.raises(ValueError, match=r"^keep_labels: none of the cohorts has label maps"):
        ShardConfig("out", [CohortConfig("a", "high/{subject}.nii")], keep_labels=True)


def test_a_low_field_may_not_be_finer_than_its_high_field():
    coarse = GeometryConfig(high_spacing_mm=(2, 2, 2))
    with pytest.raises(ValueError, match="would be finer than the high field"):
        ShardConfig("out", [CohortConfig("a", labels=LABELS)], geometry=coarse)
    ShardConfig("out", [CohortConfig("a", "high/{subject}.nii")], geometry=coarse)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    labels_as: {777: butter}\n", "cohort maps: labels_as: 777: expected a known label number or one of "),
        ("synthetic: {recipe: guess}\n", "synthetic.recipe: expected report, physics, both or null"),
        (None, "cohort maps: labels: no file matches"),
    ],
)
def test_wrong_input_is_told_before_anything_is_written(tmp_path, run_cli, text, message):
    config = write_maps(tmp_path, MAPS if text else MAPS.replace("maps/", "elsewhere/")) / "cohorts.yaml"
    if text:
        whole = config.read_text()
        recipe = whole[whole.index("synthetic: {") : whole.index("keep")]
        config.write_text(whole + text if text.startswith(" ") else whole.replace(recipe, text))
    code, _, err = run_cli(main, *arguments(tmp_path, tmp_path / "shards"))
    assert code == 2
    assert message in err
    assert not (tmp_path / "shards").exists()
