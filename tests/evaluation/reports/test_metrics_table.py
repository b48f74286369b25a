"""The table of metrics on a page shows units, signs and gaps."""

import re

from upfield.evaluation.reports.metrics_table import metrics_table


def test_metrics_table_shows_units_signs_and_gaps():
    nothing = dict.fromkeys(("mean", "median"))
    sides = {
        "cubic": {"ssim_slice": {"mean": 0.9, "median": 0.8}, "mae": nothing, "nrmse": nothing},
        "model": {"ssim_slice": {"mean": 0.8, "median": 0.7}, "mae": nothing},
        "differences": {"model - cubic": {"ssim_slice": {"mean": -0.1, "low": -0.2, "high": 0.01, "p": 0.25}}},
    }
    text = " ".join(re.sub("<[^>]*>", " ", metrics_table(sides).html).split())
    assert "SSIM slice 0.9000 0.8000 -0.1000 -0.2000 to +0.0100 0.250 0.8000 0.7000" in text
    assert "MAE, lower is better - - - - - - -" in text
    assert "NRMSE" not in text
