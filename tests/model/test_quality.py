"""Metrics agree with independent implementations."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from upfield.model.quality import mae_slice, psnr_slice, ssim_slice


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    high = torch.rand(3, 1, 40, 48, generator=torch.Generator().manual_seed(0))
    return (high + 0.1 * torch.randn(high.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1), high


def test_psnr_agrees_with_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = [peak_signal_noise_ratio(h.numpy(), r.numpy(), data_range=1) for r, h in zip(*pair, strict=True)]
    np.testing.assert_allclose(psnr_slice(*pair).numpy(), expected, rtol=1e-5)


def test_ssim_is_close_to_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = [structural_similarity(h[0].numpy(), r[0].numpy(), **options) for r, h in zip(*pair, strict=True)]
    # The two implementations average over slightly different borders.
    np.testing.assert_allclose(ssim_slice(*pair).numpy(), expected, atol=0.01)


def test_a_single_slice_has_a_single_value(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    restored, high = pair[0][:1], pair[1][:1]
    assert (
        psnr_slice(restored, high).shape == ssim_slice(restored, high).shape == mae_slice(restored, high).shape == (1,)
    )


def test_a_perfect_slice_has_no_finite_psnr(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.isinf(psnr_slice(pair[1], pair[1])).all()
    assert ssim_slice(pair[1], pair[1]).tolist() == pytest.approx([1, 1, 1])
