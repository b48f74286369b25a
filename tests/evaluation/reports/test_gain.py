"""A report says first by how much the model is better or worse than cubic interpolation, and how certain that is."""

import pytest

from upfield.evaluation.reports.gain import gain_section, gain_text, interval_text


@pytest.mark.parametrize(
    ("mean", "words"),
    [(1.234, "gains 1.23 dB"), (-0.5, "is worse than cubic interpolation by 0.50 dB"), (0.001, "has the same PSNR")],
)
def test_the_sign_of_the_gain_is_in_words(mean: float, words: str) -> None:
    assert words in gain_text({"mean": mean})


def test_the_interval_says_whether_it_includes_0() -> None:
    interval = {"mean": 1.0, "low": 0.2, "high": 1.8, "subjects": 5}
    assert interval_text(interval) == "The 95% interval of the gain over 5 subjects is +0.20 to +1.80 dB."
    assert interval_text(interval | {"low": -0.2}).endswith("is -0.20 to +1.80 dB. It includes 0.")
    assert "one subject" in interval_text(interval | {"low": None, "subjects": 1})


def test_a_split_without_finite_values_has_no_gain() -> None:
    nothing = {"psnr_slice": {"mean": None}, "ssim_slice": {"mean": None}}
    html = gain_section({"cubic": nothing, "model": nothing, "differences": {"model - cubic": {}}}).html
    assert "The gain over cubic interpolation is undefined" in html
