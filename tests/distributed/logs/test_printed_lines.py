"""Lines fit 100 columns, and say how long a run takes and what to do about it."""

from dataclasses import replace

import pytest

from upfield.distributed.logs import pace
from upfield.distributed.logs.pace import Pace, RunLength
from upfield.distributed.logs.printed_lines import expectation, setting, training_line, validation_line

WIDTH = 100
LENGTH = RunLength(
    total_steps=24_120, batch_size=4, validate_every=402, validation_slices=358, final_slices=0, preset="official"
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock by a list, whose last value is the time in seconds."""
    times = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: times[-1])
    return times


def paced(clock: list[float], length: RunLength, step_s: float, steps: int = 5) -> Pace:
    measured = Pace(length)
    clock.append(clock[-1] + 1000)  # The first step takes longer and does not count.
    for _ in range(steps):
        measured.add_step()
        clock.append(clock[-1] + step_s)
    return measured


def test_lines_of_long_runs_fit_the_width() -> None:
    figures = {"loss": 0.123456, "lr": 1.234e-4, "slices_per_s": 0.123456}
    line = training_line(1_234_560, 1_234_567, figures, 6.5 * 86_400)
    assert line == "step 1234560/1234567  loss 0.1235  lr 1.234e-4  0.123 slices/s  6 days 12 h left"
    quality = {"psnr_slice": 20.734, "cubic_psnr_slice": 21.81, "slices": 12_345}
    lines = [line, validation_line("validation", 1_234_560, quality, is_best=True)]
    lines.append(validation_line("best", 1_234_560, quality, is_best=True))
    assert all(len(line) <= WIDTH for line in lines)
    assert "PSNR 20.73 dB, 1.08 dB below cubic interpolation" in lines[1]


def test_the_expected_duration_includes_the_validations(clock: list[float]) -> None:
    measured = paced(clock, LENGTH, step_s=12)
    # A slice takes 3 s in training and 1 s in validation.
    assert measured.left_s(4) == pytest.approx(24_116 * 12 + 60 * 358)
    lines = list(expectation(LENGTH, measured, 4, on_cpu=True))
    assert lines == [
        "24116 steps at 0.333 slices/s: expect about 3 days 14 h, of which validation takes 5 h 58 min",
        "that is more than a day on a CPU: train a smaller network with --model.preset tiny, or use a GPU",
    ]
    assert all(len(line) <= WIDTH for line in lines)
    assert len(list(expectation(LENGTH, measured, 4, on_cpu=False))) == 1


def test_measured_validations_replace_the_guess(clock: list[float]) -> None:
    measured = paced(clock, LENGTH, step_s=12)
    measured.add_validation(10, 40.0)
    assert measured.validations_left_s(24_119) == pytest.approx(358 * 4)
    assert measured.validations_left_s(24_120) == 0


def test_time_in_pauses_does_not_count(clock: list[float]) -> None:
    measured = Pace(LENGTH)
    for _ in range(3):
        measured.add_step()
        clock.append(clock[-1] + 2)
        with measured.paused():
            clock.append(clock[-1] + 500)
    assert measured.step_s == 2


def test_a_limit_in_minutes_is_stated(clock: list[float]) -> None:
    length = RunLength(24_120, 4, 402, 358, max_minutes=30, preset="tiny")
    lines = list(expectation(length, paced(clock, length, step_s=12), 4, on_cpu=True))
    assert lines[1].startswith("this job stops after 30 min (run.max_minutes), at about step 1")


def test_validations_that_take_most_of_the_time_have_a_remedy(clock: list[float]) -> None:
    length = RunLength(100, 4, 10, 358)
    lines = list(expectation(length, paced(clock, length, step_s=1), 4, on_cpu=True))
    assert lines[1] == "--run.validation_slices 100 shortens the validations during training"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-4, "2e-4"),
        (1.5e-5, "1.5e-5"),
        (0.999, "0.999"),
        (4.0, "4"),
        (1e9, "1e9"),
        (None, "none"),
        (True, "true"),
        ([9, 0.001], "[9, 1e-3]"),
        ("bf16", "bf16"),
    ],
)
def test_settings_are_shown_as_people_write_them(value: object, text: str) -> None:
    assert setting(value) == text


def test_the_time_left_ends_with_the_job(clock: list[float]) -> None:
    measured = paced(clock, replace(LENGTH, max_minutes=20), step_s=12)
    assert measured.job_left_s(4) == pytest.approx(20 * 60 - 1000 - 5 * 12)
    assert paced(clock, LENGTH, step_s=12).job_left_s(4) == pytest.approx(24_116 * 12 + 60 * 358)
    clock.append(clock[-1] + 9000)
    assert measured.job_left_s(4) == 0
