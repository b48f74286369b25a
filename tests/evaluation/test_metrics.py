"""Every metric agrees with an independent computation, written here from the metric's definition."""

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from upfield.evaluation.metrics import METRICS, SLICE_METRICS, VOLUME_METRICS, ImagePair

SHAPE = (9, 40, 36)
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def to_pair(restored: np.ndarray, high: np.ndarray, head: np.ndarray | None = None) -> ImagePair:
    head = high > 0.2 if head is None else head
    return ImagePair(*(torch.from_numpy(np.ascontiguousarray(a))[:, None] for a in (restored, high, head)))


def draw(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a smooth image on a zero background, and a blurred and noisy copy: `(X, Y, Z)` float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    high = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    high = np.clip((high - high.min()) / np.ptp(high) * 1.6 - 0.6, 0, 1)
    restored = np.clip(ndimage.gaussian_filter(high, 0.7) + 0.02 * rng.standard_normal(shape), 0, 1)
    return restored.astype(np.float32), high.astype(np.float32)


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    return draw(SHAPE)


def measured(name: str, restored: np.ndarray, high: np.ndarray, head: np.ndarray | None = None) -> np.ndarray:
    return np.asarray(METRICS[name].function(to_pair(restored, high, head)))


def gaussian_window() -> np.ndarray:
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line)
    return window / window.sum()


def similarity(a: np.ndarray, b: np.ndarray, average, most: float, sample: bool = False) -> tuple[np.ndarray, ...]:
    """Compute luminance times contrast, and contrast alone, per pixel from windowed means (Wang et al. 2004)."""
    c1, c2 = (0.01 * most) ** 2, (0.03 * most) ** 2
    mean_a, mean_b = average(a), average(b)
    variance_a, variance_b = average(a * a) - mean_a**2, average(b * b) - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    if sample:  # the unbiased estimate, with n - 1 for n pixels
        count = 7**a.ndim
        variance_a, variance_b, covariance = (v * count / (count - 1) for v in (variance_a, variance_b, covariance))
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast, contrast


def filtered(image: np.ndarray) -> np.ndarray:
    """Average under the Gaussian window; the image is mirrored at its border without repeating the border pixel."""
    return signal.convolve2d(np.pad(image, 5, mode="reflect"), gaussian_window(), mode="valid")


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Compute MS-SSIM (Wang et al. 2003): mean contrast at five scales, and mean luminance at the last."""
    product = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        whole, contrast = similarity(a, b, filtered, 1.0)
        # Scales that contribute only their contrast use only pixels whose window lies inside the image.
        value = whole.mean() if scale == 4 else contrast[5:-5, 5:-5].mean()
        product *= max(value, 0) ** weight
        a, b = (
            x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
            .reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2)
            .mean(axis=(1, 3))
            for x in (a, b)
        )
    return product


def uniform(image: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(image, 7)


def test_psnr_of_slices(images):
    restored, high = images
    error = np.square(restored.astype(np.float64) - high).mean(axis=(1, 2))
    assert measured("psnr_slice", restored, high) == pytest.approx(10 * np.log10(1 / error), abs=1e-4)


def test_psnr_of_slices_inside_the_head(images):
    restored, high = images
    head = np.zeros(SHAPE, dtype=bool)
    head[:, 5:20, 5:20] = True
    head[3] = False
    head[4] = False
    head[4, :8, :8] = True  # 4.4% of the slice
    found = measured("psnr_slice_head", restored, high, head)
    assert np.isnan(found[[3, 4]]).all()
    error = np.square(restored.astype(np.float64) - high)[:, 5:20, 5:20].mean(axis=(1, 2))
    kept = [0, 1, 2, 5, 6, 7, 8]
    assert found[kept] == pytest.approx(-10 * np.log10(error[kept]), abs=1e-4)
    foreground = measured("psnr_slice_foreground", restored, high, head)
    whole = measured("psnr_slice", restored, high, head)
    assert np.isnan(foreground[[3, 4]]).all()
    assert foreground[kept].tolist() == whole[kept].tolist()


def test_the_head_must_fill_five_percent_of_a_slice():
    restored, high = draw((2, 20, 20))
    head = np.zeros(high.shape, dtype=bool)
    head[0, 0, :20] = True  # 20 of 400
    head[1, 0, :19] = True
    assert np.isfinite(measured("psnr_slice_foreground", restored, high, head)).tolist() == [True, False]


def test_mae_of_slices_and_volume(images):
    restored, high = images
    error = np.abs(restored.astype(np.float64) - high)
    assert measured("mae_slice", restored, high) == pytest.approx(error.mean(axis=(1, 2)), abs=1e-6)
    assert measured("mae", restored, high) == pytest.approx(error.mean(), abs=1e-6)


def test_ssim_of_slices(images):
    restored, high = (image.astype(np.float64) for image in images)
    expected = [similarity(a, b, filtered, 1.0)[0].mean() for a, b in zip(restored, high, strict=True)]
    assert measured("ssim_slice", *images) == pytest.approx(expected, abs=2e-5)


def test_ms_ssim_of_slices():
    restored, high = draw((2, 190, 176))
    expected = [ms_ssim(a, b) for a, b in zip(restored.astype(np.float64), high.astype(np.float64), strict=True)]
    assert measured("ms_ssim_slice", restored, high) == pytest.approx(expected, abs=2e-5)


def test_axial_slices_are_stretched_before_ms_ssim():
    restored, high = draw((180, 176, 3))
    restored = 0.3 + 0.5 * restored
    stretched = [
        [(x - x.min()) / np.ptp(x) for x in np.moveaxis(image.astype(np.float64), 2, 0)] for image in (restored, high)
    ]
    expected = np.mean([ms_ssim(a, b) for a, b in zip(*stretched, strict=True)])
    assert measured("ms_ssim_axial", restored, high) == pytest.approx(expected, abs=2e-5)
    assert measured("ms_ssim_axial", 0.2 + 0.1 * restored, high) == pytest.approx(expected, abs=2e-5)


def test_axial_slices_without_contrast_are_left_out():
    restored, high = draw((176, 176, 2))
    high[:, :, 1] = 0
    alone = measured("ms_ssim_axial", restored[:, :, :1], high[:, :, :1])
    assert measured("ms_ssim_axial", restored, high) == pytest.approx(float(alone), abs=1e-6)
    assert np.isnan(measured("ms_ssim_axial", restored, np.zeros_like(high)))


def test_ms_ssim_is_not_defined_for_small_images(images):
    assert np.isnan(measured("ms_ssim_slice", *images)).all()
    assert np.isnan(measured("ms_ssim_axial", *images))


def test_psnr_of_the_volume_uses_its_maximum_as_data_range(images):
    restored, high = images
    half = 0.5 * high
    error = np.square(restored.astype(np.float64) - half).mean()
    expected = 10 * np.log10(float(half.max()) ** 2 / error)
    assert measured("psnr_volume", restored, half) == pytest.approx(expected, abs=1e-4)


def test_ssim_of_the_volume_agrees_with_the_fastmri_definition(images):
    restored, high = images
    half, most = 0.5 * high.astype(np.float64), 0.5 * float(high.max())
    expected = [
        similarity(a.astype(np.float64), b, uniform, most, sample=True)[0][3:-3, 3:-3].mean()
        for a, b in zip(restored, half, strict=True)
    ]
    assert measured("ssim_volume", restored, 0.5 * high) == pytest.approx(np.mean(expected), abs=1e-4)


def test_nrmse(images):
    restored, high = (image.astype(np.float64) for image in images)
    expected = np.linalg.norm(restored - high) / np.linalg.norm(high)
    assert measured("nrmse", *images) == pytest.approx(expected, abs=1e-6)


def ulf_enc_score(restored: np.ndarray, high: np.ndarray, head: np.ndarray) -> float:
    """Compute the score of `(X, Y, Z)` volumes and a mask as the organisers' script defines it, with our SSIM."""
    stretched = [(image - image.min()) / np.ptp(image) for image in (restored.astype(float), high.astype(float))]
    a, b = (np.where(head, image, 0) for image in stretched)
    ssim = similarity(b, a, uniform, 1.0, sample=True)[0][head].mean()
    squares = np.square(a - b)
    psnr = np.mean([10 * np.log10(1 / (square + 1e-8)) for square in squares[head]])
    nmse = squares[head].mean() / np.square(b)[head].mean()
    return 0.7 * ssim + 0.1 * psnr / 32 + 0.1 * (1 - np.abs(a - b)[head].mean()) + 0.1 * (1 - min(1, nmse))


def test_ulf_enc_score(images):
    restored, high = images
    head = high > 0.2
    for image, target in ((restored, high), (0.1 + 0.5 * restored, 0.3 + 0.6 * high)):
        assert measured("score_ulf_enc", image, target, head) == pytest.approx(
            ulf_enc_score(image, target, head), abs=1e-6
        )


def test_ulf_enc_score_scales_each_volume_by_its_own_range(images):
    restored, high = images
    expected = measured("score_ulf_enc", restored, high)
    assert measured("score_ulf_enc", 0.1 + 0.5 * restored, high) == pytest.approx(expected, abs=1e-6)


def test_ulf_enc_score_counts_an_nmse_above_1_as_1(images):
    high = images[1]
    head = (high > 0) & (high < 0.4)
    dark, bright = np.where(head, high, 1).astype(np.float32), np.where(head, 1 - high, 0).astype(np.float32)
    assert np.square(bright - dark)[head].sum() > 2 * np.square(dark[head]).sum()
    assert measured("score_ulf_enc", bright, dark, head) == pytest.approx(ulf_enc_score(bright, dark, head), abs=1e-6)


def test_a_constant_restored_volume_has_no_ulf_enc_score(images):
    assert np.isnan(measured("score_ulf_enc", np.full_like(images[1], 0.5), images[1]))


def test_perfect_images(images):
    _, high = images
    expected = {"nrmse": 0, "mae": 0, "ssim_volume": 1, "psnr_volume": np.inf}
    # The challenge's PSNR of a perfect voxel is 80 dB.
    expected["score_ulf_enc"] = 0.7 + 0.1 * 80 / 32 + 0.2
    for name, value in expected.items():
        assert measured(name, high, high) == pytest.approx(value, abs=1e-5)
    assert np.isposinf(measured("psnr_slice", high, high)).all()
    assert measured("ssim_slice", high, high) == pytest.approx(1, abs=1e-6)
    _, large = draw((1, 176, 176))
    assert measured("ms_ssim_slice", large, large) == pytest.approx(1, abs=1e-6)


def test_metrics_that_need_a_data_range_are_undefined_for_a_zero_volume():
    nothing = np.zeros((9, 20, 20), dtype=np.float32)
    for name in ("psnr_volume", "ssim_volume", "nrmse", "score_ulf_enc"):
        assert np.isnan(measured(name, nothing + np.float32(0.1), nothing))
    assert measured("mae", nothing + np.float32(0.1), nothing) == pytest.approx(0.1)


def test_a_volume_thinner_than_the_window_has_no_score():
    restored, high = draw((5, 20, 20))
    assert np.isnan(measured("score_ulf_enc", restored, high))


def test_a_worse_image_has_worse_values(images):
    restored, high = images
    worse = np.clip(restored + 0.1 + 0.1 * np.random.default_rng(1).random(SHAPE, dtype=np.float32), 0, 1)
    small = ("ms_ssim_slice", "ms_ssim_axial")
    for name, metric in METRICS.items():
        if name in small:
            continue
        good, bad = (float(np.nanmean(measured(name, image, high))) for image in (restored, worse))
        assert (good > bad) == metric.higher_is_better, name


def test_every_metric_has_a_definition_and_its_unit():
    assert set(SLICE_METRICS) | set(VOLUME_METRICS) == METRICS.keys()
    assert all(len(metric.definition) > 40 for metric in METRICS.values())
    assert [name for name, metric in METRICS.items() if metric.unit == "dB"] == [n for n in METRICS if "psnr" in n]
