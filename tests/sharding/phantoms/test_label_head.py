from dataclasses import replace

import numpy as np
import pytest
from head_maps import GEOMETRY, label_volume

from upfield.sharding.phantoms.configuration import HeadsConfig
from upfield.sharding.phantoms.label_head import draw_head, high_field
from upfield.sharding.phantoms.label_map import make_label_map
from upfield.sharding.phantoms.label_tissues import PARTNERS
from upfield.sharding.physics.relaxation import Tissue

PLAIN = HeadsConfig(
    scale=(1, 1), rotation_deg=(0, 0), coarse_rms_mm=(0, 0), fine_rms_mm=(0, 0), label_spread=(0, 0), texture=(0, 0),
    vessels=(0, 0), mirrored_rate=0, stripped_rate=0, defaced_rate=0, cut_rate=0,
)  # fmt: skip
SIGNALS = {tissue: 0.1 * place for place, tissue in enumerate(Tissue, 3)} | {Tissue.AIR: 0.0}


@pytest.fixture(scope="module")
def label_map():
    return make_label_map(label_volume(), "map", {})


def draw(label_map, seed=0, **changes):
    return draw_head(label_map, GEOMETRY, replace(PLAIN, **changes), np.random.default_rng(seed))


def render(head, signals):
    return head.render(signals, np.random.default_rng(0)).voxels


def test_the_same_generator_draws_the_same_head_and_another_one_another(label_map):
    first, same, other = (draw(label_map, seed, coarse_rms_mm=(3, 3), texture=(1, 1)) for seed in (1, 1, 2))
    assert np.array_equal(render(first, SIGNALS), render(same, SIGNALS))
    assert first.parameters == same.parameters
    assert not np.array_equal(first.labels, other.labels)


def test_mirrored_heads_have_their_labels_on_the_other_side(label_map):
    plain, mirrored = draw(label_map), draw(label_map, mirrored_rate=1)
    right = mirrored.labels[GEOMETRY.high_shape[0] // 2 + 4 :]
    assert {2, 3} & set(np.unique(plain.labels[: GEOMETRY.high_shape[0] // 2 - 4]))
    assert 41 in right
    assert 2 not in right
    assert PARTNERS[41] == 2
    # The one eye of the map is now on the other side.
    assert np.argwhere(plain.labels == 506)[:, 0].mean() < GEOMETRY.high_shape[0] / 2
    assert np.argwhere(mirrored.labels == 506)[:, 0].mean() > GEOMETRY.high_shape[0] / 2


def test_a_flat_head_has_the_signal_of_each_tissue_where_labels_do_not_meet(label_map):
    head = draw(label_map)
    voxels = render(head, SIGNALS)
    inner = np.ones(voxels.shape, bool)
    inner.reshape(-1)[head.sampling.edges] = False
    for number, tissue in ((2, Tissue.WHITE), (3, Tissue.GREY), (43, Tissue.FLUID)):
        where = inner & (head.labels == number)
        assert np.allclose(voxels[where], SIGNALS[tissue], atol=1e-5)
    assert (voxels[inner & (head.labels == 0)] == 0).all()


def test_voxels_at_borders_lie_between_their_tissues(label_map):
    head = draw(label_map)
    voxels = render(head, dict.fromkeys(Tissue, 1.0) | {Tissue.AIR: 0.0}).reshape(-1)
    at_edges = voxels[head.sampling.edges]
    assert ((at_edges > 0.05) & (at_edges < 0.95)).mean() > 0.05
    assert voxels.max() == pytest.approx(1, abs=1e-5)


def test_both_fields_show_the_same_texture(label_map):
    head = draw(label_map, texture=(1, 1))
    inner = head.labels == 2
    inner.reshape(-1)[head.sampling.edges] = False
    other = SIGNALS | {Tissue.WHITE: 1.0, Tissue.GREY: 0.5}
    first, second = (render(head, signals)[inner] for signals in (SIGNALS, other))
    assert first.std() > 0
    assert abs(np.corrcoef(first, second)[0, 1]) > 0.999


def test_both_fields_show_the_same_vessels(label_map):
    plain, head = draw(label_map), draw(label_map, vessels=(60, 60))
    other = SIGNALS | {Tissue.BLOOD: 2.0}
    first, second = (render(head, signals) != render(plain, signals) for signals in (SIGNALS, other))
    assert np.count_nonzero(first) > 50
    assert np.mean(first == second) > 0.999


def test_skull_stripping_leaves_the_brain_and_black_around_it(label_map):
    head = draw(label_map, stripped_rate=1)
    assert not np.isin(head.labels, (506, 507, 511, 515)).any()
    assert {2, 41, 3, 42} <= set(np.unique(head.labels))
    high, _ = high_field(head, PLAIN, np.random.default_rng(0))
    assert (high.voxels[head.labels == 0] == 0).all()


def test_defacing_removes_no_brain(label_map):
    plain, defaced = draw(label_map), draw(label_map, defaced_rate=1)
    brain = (2, 41, 3, 42, 4, 43)
    assert np.array_equal(np.isin(plain.labels, brain), np.isin(defaced.labels, brain))
    assert np.count_nonzero(defaced.labels) < np.count_nonzero(plain.labels)


def test_a_cut_field_of_view_ends_in_planes_of_the_grid(label_map):
    head = draw(label_map, cut_rate=1, rotation_deg=(10, 10))
    box = tuple(slice(*each) for each in head.parameters["view_vox"])
    outside = np.ones(head.labels.shape, bool)
    outside[box] = False
    assert outside.any()
    assert (head.labels[outside] == 0).all()


def test_high_field_noise_in_air_is_rician(label_map):
    head = draw(label_map)
    config = replace(PLAIN, snr=(20, 20), log_bias_rms=(0, 0))
    scans = (high_field(head, config, np.random.default_rng(seed)) for seed in range(9, 40))
    high, drawn = next(scan for scan in scans if not (scan[1]["black_air"] or scan[1]["smooth_noise"]))
    corners = np.r_[:7, -7:0]
    noise = high.voxels[np.ix_(corners, corners, corners)]
    assert noise.mean() / noise.std() == pytest.approx(1.913, rel=0.08)  # sqrt(pi / (4 - pi))
    assert noise.std() == pytest.approx(0.655 * drawn["units"] / 20, rel=0.15)


def test_ranges_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"synthetic.heads.snr: the first value, 9, exceeds the second, 3"):
        HeadsConfig(snr=(9, 3))
    with pytest.raises(ValueError, match=r"synthetic.heads.vessels: expected two values from 0 to 10000, found"):
        HeadsConfig(vessels=(0, 1e9))
    with pytest.raises(ValueError, match=r"synthetic.heads.cut_rate: expected 0..1, found 2"):
        HeadsConfig(cut_rate=2)


@pytest.mark.parametrize(("mirrored", "cut_side"), [(0, 0), (1, 1)])
def test_the_field_of_view_ends_where_the_map_does(mirrored, cut_side):
    whole = label_volume()
    cut = make_label_map(replace(whole, voxels=whole.voxels[14:]), "map", {})
    limits = draw(cut, mirrored_rate=mirrored, rotation_deg=(10, 10)).parameters["view_vox"][0]
    ends = (0, GEOMETRY.high_shape[0])
    assert limits[cut_side] != ends[cut_side]
    assert limits[1 - cut_side] == ends[1 - cut_side]
