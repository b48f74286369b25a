"""Each loss term follows its formula and is finite for every pair of slices that training can produce."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from upfield.model.configuration import LossConfig
from upfield.model.losses import TERMS, restoration_loss

LOAD = torch.tensor(2.0)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(2, 1, 192, 176, generator=generator)
    return (high + 0.1 * torch.randn(high.shape, generator=generator)).clamp(0, 1), high


def only(name: str, weight: float = 1.0) -> LossConfig:
    """Return a configuration in which only one weight is not zero."""
    return LossConfig(**({"l1_weight": 0.0, "load_weight": 0.0} | {f"{name}_weight": weight}))


def test_the_default_is_l1_and_a_thousandth_of_the_load_loss(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss, terms = restoration_loss(*pair, LOAD, LossConfig())
    l1 = (pair[0] - pair[1]).abs().mean()
    torch.testing.assert_close(loss, l1 + 0.002)
    torch.testing.assert_close(terms, {"l1": l1, "load": LOAD})


def test_the_loss_is_weighted_and_its_terms_are_returned_unweighted(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    weights = {name: 0.5 + number for number, name in enumerate(TERMS)}
    config = LossConfig(**{f"{name}_weight": weight for name, weight in weights.items()}, load_weight=0.25)
    loss, terms = restoration_loss(*pair, LOAD, config)
    assert list(terms) == [*TERMS, "load"]
    alone = {name: restoration_loss(*pair, LOAD, only(name))[0] for name in TERMS}
    torch.testing.assert_close({name: terms[name] for name in TERMS}, alone)
    torch.testing.assert_close(loss, sum(weights[name] * alone[name] for name in TERMS) + 0.25 * LOAD)
    assert not any(term.requires_grad for term in terms.values())


def test_each_weight_of_the_configuration_has_a_term() -> None:
    assert {field.name for field in fields(LossConfig)} == {f"{name}_weight" for name in (*TERMS, "load")}


def test_charbonnier_and_gradient_terms_follow_their_formulas(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    restored, high = (image.double().numpy() for image in pair)
    charbonnier = (((restored - high) ** 2 + 1e-6) ** 0.5).mean()
    assert restoration_loss(*pair, LOAD, only("charbonnier"))[0].item() == pytest.approx(charbonnier, rel=1e-5)
    across, down = (
        np.abs(np.abs(np.diff(restored, axis=axis)) - np.abs(np.diff(high, axis=axis))).mean() for axis in (-1, -2)
    )
    assert restoration_loss(*pair, LOAD, only("gradient"))[0].item() == pytest.approx(across + down, rel=1e-5)


def test_ssim_agrees_with_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images = zip(pair[0][:, 0].double().numpy(), pair[1][:, 0].double().numpy(), strict=True)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = 1 - np.mean([float(structural_similarity(one, other, **options)) for one, other in images])  # pyright: ignore[reportArgumentType]
    assert restoration_loss(*pair, LOAD, only("ssim"))[0].item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", [*TERMS])
def test_equal_slices_cost_nothing(pair: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    cost = restoration_loss(pair[1], pair[1], LOAD, only(name))[0].item()
    assert cost == pytest.approx(1e-3 if name == "charbonnier" else 0, abs=1e-5)


@pytest.mark.parametrize("name", [*TERMS])
@pytest.mark.parametrize("content", ["black", "white", "equal", "opposed", "apart"])
def test_value_and_gradient_are_finite_on_constant_equal_and_opposed_slices(
    pair: tuple[torch.Tensor, torch.Tensor], name: str, content: str
) -> None:
    high = pair[1]
    contents = {
        "black": (torch.zeros_like(high), torch.zeros_like(high)),
        "white": (torch.ones_like(high), torch.ones_like(high)),
        "equal": (high, high),
        "opposed": (1 - high, high),
        "apart": (torch.full_like(high, 0.3), torch.zeros_like(high)),
    }
    restored, high = contents[content]
    restored = restored.clone().requires_grad_()
    loss, terms = restoration_loss(restored, high, LOAD, only(name))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(terms[name])
    assert restored.grad is not None
    assert torch.isfinite(restored.grad).all()


def test_sums_are_computed_in_float32_under_autocast(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    config = LossConfig(ssim_weight=1.0, gradient_weight=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = restoration_loss(pair[0].bfloat16(), pair[1], LOAD, config)
    expected, _ = restoration_loss(pair[0].bfloat16().float(), pair[1], LOAD, config)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_slices_too_small_for_ms_ssim_are_refused(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    low, high = (image[..., :128, :128] for image in pair)
    with pytest.raises(ValueError, match=r"expected slices of at least 176 x 176, found 128 x 128\. Use loss\.ssim"):
        restoration_loss(low, high, LOAD, only("ms_ssim"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ssim_weight": -1.0}, r"loss\.ssim_weight: expected .*found -1\.0"),
        ({"load_weight": float("nan")}, r"loss\.load_weight: expected .*found nan"),
        ({"l1_weight": 0.0}, r"loss: all weights except load_weight are 0\. Set at least one of them above 0\."),
    ],
)
def test_impossible_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**weights)
