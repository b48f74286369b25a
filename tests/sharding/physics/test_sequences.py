"""Contrast: relaxation times and signal equations."""

import math
from dataclasses import replace

import numpy as np
import pytest

from upfield.common.errors import InputError
from upfield.sharding.physics.relaxation import HIGH, LOW, Relaxation, Tissue, draw_relaxation
from upfield.sharding.physics.sequences import (
    MPRAGE_ECHO_MS,
    MPRAGE_ECHOES,
    Sequence,
    draw_sequence,
    tissue_signals,
)


def drawn_signals(field, contrast, seed):
    rng = np.random.default_rng(seed)
    return tissue_signals(draw_sequence(field, contrast, rng), draw_relaxation(field, rng))


@pytest.mark.parametrize("field", ["low", "high"])
@pytest.mark.parametrize("seed", range(20))
def test_each_contrast_orders_the_tissues_as_radiologists_know_them(field, seed):
    t1w, t2w, flair = (drawn_signals(field, contrast, seed) for contrast in ("T1w", "T2w", "FLAIR"))
    assert t1w[Tissue.FAT] > t1w[Tissue.WHITE] > t1w[Tissue.GREY] > t1w[Tissue.FLUID]
    assert t2w[Tissue.FLUID] > t2w[Tissue.LESION] > t2w[Tissue.WHITE]
    assert t2w[Tissue.FLUID] > 1.3 * t2w[Tissue.GREY] > 1.3 * t2w[Tissue.WHITE]
    assert flair[Tissue.LESION] > flair[Tissue.WHITE] > flair[Tissue.FLUID]
    assert all(signals[Tissue.AIR] == 0 and signals[Tissue.BONE] < 0.05 for signals in (t1w, t2w, flair))


def test_white_matter_is_1_in_every_sequence():
    assert drawn_signals("low", "T2w", 3)[Tissue.WHITE] == pytest.approx(1)


def test_an_unknown_contrast_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"expected a contrast of T1w, T2w, FLAIR, found bold\. State"):
        draw_sequence("low", "bold", np.random.default_rng(0))


def test_inversion_recovery_agrees_with_a_simulation_of_its_pulses():
    sequence = Sequence("inversion_recovery", "FLAIR", 4000, 160, 1400)
    grey, white = Relaxation(0.86, 350, 107), Relaxation(0.77, 295, 102)

    def simulated(tissue):
        magnetization, before = 1.0, 0.0
        for _ in range(10):
            inverted = -magnetization
            before = 1 + (inverted - 1) * math.exp(-sequence.ti_ms / tissue.t1_ms)
            # The echo train leaves nothing.
            magnetization = 1 - math.exp(-(sequence.tr_ms - sequence.ti_ms) / tissue.t1_ms)
        return abs(before) * tissue.density * math.exp(-sequence.te_ms / tissue.t2_ms)

    table = {Tissue.WHITE: white, Tissue.GREY: grey}
    assert tissue_signals(sequence, table)[Tissue.GREY] == pytest.approx(simulated(grey) / simulated(white), rel=1e-6)


def test_mprage_agrees_with_a_simulation_of_every_pulse():
    sequence = Sequence("mprage", "T1w", 2300, 3, 950, 9)
    table = {Tissue.WHITE: HIGH[Tissue.WHITE].mean, Tissue.FLUID: HIGH[Tissue.FLUID].mean}

    def simulated(tissue):
        magnetization, centre = 1.0, 0.0

        def wait(time_ms):
            return 1 + (magnetization - 1) * math.exp(-time_ms / tissue.t1_ms)

        train_ms = MPRAGE_ECHOES * MPRAGE_ECHO_MS
        for _ in range(30):
            magnetization = -magnetization
            magnetization = wait(sequence.ti_ms - train_ms / 2)
            for pulse in range(MPRAGE_ECHOES):
                if pulse == MPRAGE_ECHOES // 2:
                    centre = magnetization
                magnetization *= math.cos(math.radians(sequence.flip_deg))
                magnetization = wait(MPRAGE_ECHO_MS)
            magnetization = wait(sequence.tr_ms - sequence.ti_ms - train_ms / 2)
        return abs(centre) * tissue.density * math.exp(-sequence.te_ms / tissue.t2_ms)

    expected = simulated(table[Tissue.FLUID]) / simulated(table[Tissue.WHITE])
    assert tissue_signals(sequence, table)[Tissue.FLUID] == pytest.approx(expected, rel=1e-6)


def test_people_differ_as_much_as_the_table_says():
    drawn = [draw_relaxation("low", np.random.default_rng(seed))[Tissue.MUSCLE].t1_ms for seed in range(400)]
    row = LOW[Tissue.MUSCLE]
    assert np.mean(drawn) == pytest.approx(row.mean.t1_ms, rel=0.02)
    assert np.std(drawn) == pytest.approx(row.spread * row.mean.t1_ms, rel=0.15)


def test_no_spread_gives_everybody_the_mean():
    assert draw_relaxation("high", np.random.default_rng(1), 0)[Tissue.FAT] == HIGH[Tissue.FAT].mean


def test_every_figure_has_a_source():
    for table in (LOW, HIGH):
        assert set(table) == set(Tissue)
        assert all(row.source for row in table.values())


def test_a_shorter_echo_time_brightens_what_decays_fast():
    sequence = Sequence("spin_echo", "T2w", 3000, 160)
    means = {tissue: row.mean for tissue, row in LOW.items()}
    early = tissue_signals(replace(sequence, te_ms=20), means)
    assert early[Tissue.MUSCLE] > tissue_signals(sequence, means)[Tissue.MUSCLE]
