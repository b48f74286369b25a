import numpy as np
import pytest

from upfield.common.errors import VolumeError
from upfield.imaging.normalisation import normalise_in_place
from upfield.sharding.building.generator import generator_for
from upfield.sharding.building.pairs.report_recipe import Degradation, degrade, draw_degradation
from upfield.sharding.configuration import SyntheticConfig

RANGES = SyntheticConfig()
PLAIN = Degradation(sigma_vox=0.0, gamma=1.0, noise_std=0.0)


def flat(value, shape=(30, 30, 30)):
    return np.full(shape, value, np.float32)


def normalise(voxels, where):
    scaled = voxels.copy()
    half = normalise_in_place(scaled, where)
    np.testing.assert_array_equal(half, scaled.astype(np.float16))
    return scaled


def noise_of(value, parameters, ratio=0.3):
    return (degrade(flat(value), parameters, ratio, np.random.default_rng(0)) - value).std()


def test_percentiles_1_and_99_become_0_and_1():
    voxels = np.random.default_rng(0).normal(300, 50, (20, 21, 22)).astype(np.float32)
    low, high = np.percentile(voxels, [1, 99])
    scaled = normalise(voxels, "head")
    assert scaled.dtype == np.float32
    assert scaled.min() == 0
    assert 1 - 1e-6 < scaled.max() <= 1
    inside = (voxels > low) & (voxels < high)
    np.testing.assert_allclose(scaled[inside], (voxels[inside] - low) / (high - low), atol=1e-6)
    assert 0.975 < inside.mean() < 0.985


def test_normalising_removes_the_unit():
    voxels = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(normalise(voxels, "a"), normalise(1000 * voxels - 7000, "b"), atol=1e-4)


def test_a_nearly_constant_volume_is_refused_with_its_name():
    voxels = flat(3)
    voxels[0, 0, 0] = 9
    with pytest.raises(VolumeError, match=r"^head: percentiles 1 and 99 are both 3,"):
        normalise(voxels, "head")


def test_no_blur_no_darkening_and_no_noise_change_nothing():
    image = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    np.testing.assert_allclose(degrade(image, PLAIN, 0.3, np.random.default_rng(0)), image, atol=1e-6)


def test_gamma_darkens_the_middle_and_keeps_the_ends():
    values = [degrade(flat(v), Degradation(0.5, 2.0, 0.0), 0.3, np.random.default_rng(0)).mean() for v in (0, 0.5, 1)]
    np.testing.assert_allclose(values, [0, 0.25, 1], atol=1e-5)


def test_noise_is_larger_in_the_dark():
    parameters = Degradation(0.0, 1.0, 0.02)
    dark, bright = noise_of(0.1, parameters), noise_of(0.9, parameters)
    assert dark == pytest.approx(0.02 * (1 - 0.7 * 0.1), rel=0.03)
    assert bright == pytest.approx(0.02 * (1 - 0.7 * 0.9), rel=0.03)
    assert noise_of(0.1, parameters, ratio=1.0) == pytest.approx(noise_of(0.9, parameters, ratio=1.0), rel=0.01)


def test_blur_removes_detail_and_output_stays_in_range():
    image = np.random.default_rng(0).integers(0, 2, (20, 20, 20)).astype(np.float32)
    low = degrade(image, Degradation(1.0, 1.0, 0.5), 1.0, np.random.default_rng(0))
    assert (low.dtype, low.min(), low.max()) == (np.float32, 0, 1)
    smooth = degrade(image, Degradation(1.0, 1.0, 0.0), 1.0, np.random.default_rng(0))
    assert smooth.std() < image.std() / 3


def test_a_generator_depends_only_on_seed_and_names():
    def draw(*names):
        return generator_for(*names).random()

    assert draw(0, "ixi", "IXI002", 0) == draw(0, "ixi", "IXI002", 0)
    others = [(1, "ixi", "IXI002", 0), (0, "nyu", "IXI002", 0), (0, "ixi", "IXI012", 0), (0, "ixi", "IXI002", 1)]
    assert len({draw(*names) for names in [(0, "ixi", "IXI002", 0), *others, (0, "ixiI", "XI002", 0)]}) == 6


def test_variants_differ_and_the_same_seed_gives_the_same_result():
    image = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)

    def make(variant):
        rng = generator_for(3, "ixi", "IXI002", variant)
        parameters = draw_degradation(RANGES, rng)
        return parameters, degrade(image, parameters, RANGES.noise_bright_ratio, rng)

    assert make(0)[0] != make(1)[0]
    assert make(0)[0] == make(0)[0]
    np.testing.assert_array_equal(make(0)[1], make(0)[1])


def test_parameters_are_drawn_from_their_ranges():
    drawn = [draw_degradation(RANGES, generator_for(0, number)).to_tree() for number in range(100)]
    for name, values in ((name, [tree[name] for tree in drawn]) for name in drawn[0]):
        least, most = getattr(RANGES, name)
        assert least <= min(values) < max(values) <= most
        assert max(values) - min(values) > 0.8 * (most - least)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma_vox": (1.0, 0.5)}, r"synthetic.sigma_vox: the first value, 1, exceeds the second, 0.5"),
        ({"gamma": (0.5, 1.0)}, r"synthetic.gamma: expected two values of at least 1, found \[0.5, 1\]"),
        ({"noise_std": (-0.1, 0.1)}, "synthetic.noise_std"),
        ({"noise_bright_ratio": 1.5}, "synthetic.noise_bright_ratio: expected 0..1, found 1.5"),
    ],
)
def test_invalid_ranges_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**fields)
