from dataclasses import replace

import numpy as np
import pytest
from head_maps import label_volume
from nibabel.nifti1 import Nifti1Image

from upfield.common.errors import InputError, VolumeError
from upfield.imaging.volume import Volume
from upfield.sharding.phantoms.label_map import make_label_map, read_label_map
from upfield.sharding.phantoms.label_tissues import KNOWN, PARTNERS, STRUCTURES


def changed(*pairs):
    """Return the map with other labels: each old label is followed by the new one."""
    volume = label_volume()
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        volume.voxels[volume.voxels == old] = new
    return volume


def small_head():
    """Return a map whose labels fill a cube of 5 mm."""
    voxels = np.zeros_like(label_volume().voxels)
    voxels[18:30, 24:36, 22:34] = label_volume().voxels[18:30, 24:36, 22:34]
    return Volume(voxels, np.diag([0.4, 0.4, 0.4, 1]))


def numbers_of(label_map):
    return np.array([kind.number for kind in label_map.kinds])[label_map.classes]


def refused(volume, labels_as=None):
    with pytest.raises(InputError) as caught:
        make_label_map(volume, "map.nii.gz", labels_as or {})
    text = str(caught.value)
    assert text.count(". ") <= 1
    return text


def test_each_known_number_has_a_structure_whose_shares_sum_to_one():
    assert set(KNOWN.values()) <= set(STRUCTURES)
    assert all(sum(structure.mixture.values()) == pytest.approx(1) for structure in STRUCTURES.values())


def test_partners_are_mutual_and_show_the_same_structure():
    assert all(PARTNERS[other] == number and KNOWN[other] == KNOWN[number] for number, other in PARTNERS.items())


def test_the_box_holds_the_labels_of_the_map():
    volume = label_volume()
    numbers = numbers_of(make_label_map(volume, "map", {}))
    inner = (515, 24, 3, 42, 2, 41, 4, 43)
    assert [np.count_nonzero(numbers == each) for each in inner] == [
        np.count_nonzero(volume.voxels == each) for each in inner
    ]


def test_parts_apart_from_the_head_are_dropped():
    volume = label_volume()
    volume.voxels[:3, :3, :3] = 24
    assert np.array_equal(
        numbers_of(make_label_map(volume, "map", {})), numbers_of(make_label_map(label_volume(), "map", {}))
    )


def test_a_map_that_ends_within_the_head_goes_on_below_its_field_of_view():
    whole = label_volume()
    cut = make_label_map(replace(whole, voxels=whole.voxels[:, :, 20:]), "map", {})
    numbers = numbers_of(cut)
    first = int(cut.view_vox[2, 0])
    assert first > 1
    assert np.array_equal(numbers[:, :, 1], numbers[:, :, first])
    assert make_label_map(whole, "map", {}).view_vox[2, 0] == 1


def test_layers_lie_below_each_other():
    label_map = make_label_map(label_volume(), "map", {})
    middle = label_map.classes[:, label_map.classes.shape[1] // 2, label_map.classes.shape[2] // 2]
    kinds = [label_map.kinds[place] for place in middle[: len(middle) // 4]]
    depths = [kind.layer_mm or 0.0 for kind in kinds if kind.number == 507]
    assert len(set(depths)) > 1
    assert depths == sorted(depths)


def test_unknown_numbers_are_named_and_can_be_explained():
    text = refused(changed(515, 9000))
    assert "9000" in text
    assert "labels_as" in text
    for meaning, name in ((515, "compact bone"), ("bone", "bone")):
        kind = make_label_map(changed(515, 9000), "map", {9000: meaning}).kinds[-1]
        assert (kind.number, kind.structure) == (9000, STRUCTURES[name])


def test_a_pair_of_explained_numbers_are_each_others_partners():
    volume = changed(2, 902, 41, 941)
    label_map = make_label_map(volume, "map", {902: 2, 941: 41})
    numbers = [kind.number for kind in label_map.kinds]
    assert label_map.partners[numbers.index(902)] == numbers.index(941)


@pytest.mark.parametrize(
    ("volume", "labels_as", "problem"),
    [
        (changed(0, 511), {}, "background"),
        (replace(label_volume(), voxels=(label_volume().voxels > 0).astype(np.float32) * 2), {}, "only label 2"),
        (changed(24, 24.5), {}, "whole numbers, but .* for example 24.5"),
        (changed(24, -3), {}, "found -3"),
        (changed(24, 1e6), {}, "found 1e"),
        (replace(label_volume(), affine=np.diag([0.1, 0.1, 0.1, 1])), {}, "at least 9 mm along every axis"),
        (small_head(), {}, "form no head"),
        (changed(2, 9001, 41, 9002), {}, "labels 9001, 9002 are unknown"),
        (label_volume(), {24: "water"}, "'water'"),
        (label_volume(), {24: 9999}, "9999"),
    ],
    ids=[
        *("no background", "one label", "fractions", "negative", "huge", "tiny", "small head", "unknown numbers"),
        *("unknown tissue", "unknown meaning"),
    ],
)
def test_bad_maps_and_meanings_are_refused_in_two_sentences(volume, labels_as, problem):
    with pytest.raises(InputError, match=problem):
        make_label_map(volume, "map.nii.gz", labels_as)
    refused(volume, labels_as)


def test_a_constant_map_and_a_series_are_refused(tmp_path):
    voxels = label_volume().voxels
    for name, wrong in (("constant", np.full_like(voxels, 2)), ("series", np.stack([voxels, voxels], axis=3))):
        path = tmp_path / f"{name}.nii.gz"
        Nifti1Image(wrong.astype(np.int16), label_volume().affine).to_filename(path)
        with pytest.raises(VolumeError, match=r"every voxel has the value 2|3 dimensions"):
            read_label_map(path, {})
