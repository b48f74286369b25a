"""A model is compared with cubic interpolation on the same slices."""

from typing import Any

import pytest

from upfield.model.baseline import describe_gain, gain_over_cubic, warn_if_below_cubic


def figures(model: float | None, cubic: float | None) -> dict[str, Any]:
    return {"psnr_slice": model, "cubic_psnr_slice": cubic}


@pytest.mark.parametrize(
    ("model", "words"), [(20.73, "1.08 dB below"), (22.16, "0.35 dB above"), (21.812, "as good as")]
)
def test_the_difference_is_in_words(model: float, words: str) -> None:
    assert describe_gain(figures(model, 21.81)) == f"{words} cubic interpolation"


def test_only_a_model_below_cubic_interpolation_is_warned_about() -> None:
    warning = warn_if_below_cubic("run", 40, figures(20.73, 21.81))
    assert warning is not None
    assert "run: the best model (step 40) is worse than cubic interpolation: 20.73 dB and 21.81 dB" in warning
    assert warn_if_below_cubic("run", 40, figures(22.0, 21.81)) is None


@pytest.mark.parametrize("unknown", [{}, figures(None, 20.0), figures(float("nan"), 20.0), figures(20.0, float("inf"))])
def test_nothing_is_said_about_unknown_figures(unknown: dict[str, Any]) -> None:
    assert gain_over_cubic(unknown) is None
    assert describe_gain(unknown) == ""
    assert warn_if_below_cubic("model.onnx", 1, unknown) is None
