"""Points are compared by their mean over seeds, failed trials included, and the report shows them all."""

import csv
import io
import json
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest

from upfield.common.errors import RunError
from upfield.distributed.configuration import DataConfig, TrainSettings
from upfield.distributed.logs.metrics_log import LOG, parse_log
from upfield.tune.cluster import count_fitting
from upfield.tune.configuration import ResourceConfig, SweepConfig
from upfield.tune.figures import _positions, coordinates_png, learning_curves_png
from upfield.tune.outcomes import (
    RUNS,
    PointOutcome,
    TrialOutcome,
    last_line,
    read_baseline,
    read_curve,
    read_trial,
    table_of_points,
)
from upfield.tune.results import result_rows, results_table, to_csv, trial_rows, write_results
from upfield.tune.space import name_run
from upfield.tune.state import is_complete, newest_of_each_kind
from upfield.tune.sweep_report import LEAST_POINTS, importance, write_sweep_report
from upfield.tune.trial import POINT, failure_report

CURVE = ((1.0, 20.0), (2.0, 21.0))


def outcome(scores: list[float | None], out: Path = Path("sweep"), **point: object) -> PointOutcome:
    trials = [
        TrialOutcome(
            point,
            number if len(scores) > 1 else None,
            score,
            "done" if score is not None else "failed: step 3: expected a finite loss",
            str(out / "trials" / f"{point}-{number}"),
            cubic_psnr_slice=21.5,
            curve=CURVE if score is not None else (),
        )
        for number, score in enumerate(scores)
    ]
    return PointOutcome(point, tuple(sorted(trials, key=lambda trial: -(trial.psnr_slice or -math.inf))))


def test_mean_and_spread_are_over_seeds() -> None:
    point = outcome([20.0, 22.0], lr=1)
    assert point.mean == 21.0
    assert point.spread == pytest.approx(math.sqrt(2))
    assert outcome([20.0], lr=1).spread is None


def test_a_point_with_a_failed_seed_has_no_mean_and_states_the_reason() -> None:
    point = outcome([20.0, None], lr=1)
    assert point.mean == -math.inf
    assert point.status == "done; failed: step 3: expected a finite loss"
    rows = list(csv.DictReader(io.StringIO(to_csv(result_rows([point])))))
    assert (rows[0]["psnr_slice"], rows[0]["status"]) == ("", point.status)
    assert [row["psnr_slice"] for row in trial_rows([point])] == [20.0, ""]


def test_results_are_written_and_best_is_the_best_run_of_the_best_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [outcome([22.0, 23.0], tmp_path, lr=0.1, size=2), outcome([25.0, 19.0], tmp_path, lr=0.2, size=2)]
    points.append(outcome([None, None], tmp_path, lr=0.3, size=4))
    for point in points:
        for trial in point.trials:
            Path(trial.run).mkdir(parents=True)
    write_results(tmp_path, points)
    assert (tmp_path / "best").resolve() == Path(points[0].trials[0].run).resolve()
    text = (tmp_path / "report.html").read_text()
    for words in (
        "The best of 3 points reaches 22.50 dB, 1.00 dB above cubic interpolation.",
        "2 points with a result, 1 without. So few points show no trend",
        "Learning curves",
        "22.50 +- ",
    ):
        assert words in text
    assert not re.search("Parallel coordinates|Importance", text)
    assert not re.search(r"(src|href)\s*=\s*\"(https?:)?//", text)
    printed = capsys.readouterr().out
    assert "23.00 dB, 1.50 dB above cubic interpolation\nExport it with: upfield export" in printed
    with (tmp_path / "results.csv").open() as file:
        assert [row["rank"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with (tmp_path / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_a_sweep_without_any_result_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no trial of the 1 points reached .* first point: failed: step 3"):
        write_results(tmp_path, [outcome([None], tmp_path, lr=1)])
    assert (tmp_path / "results.csv").is_file()


def test_the_report_of_many_points_says_what_parameters_explain_beside_chance(tmp_path: Path) -> None:
    write_sweep_report(tmp_path / "report.html", [outcome([30.0 - n], lr=n, size=n % 2) for n in range(LEAST_POINTS)])
    text = (tmp_path / "report.html").read_text()
    assert "Parallel coordinates" in text
    assert "no trend" not in text
    # By chance, 4 bins of 20 points explain 3/19, and 2 groups 1/19.
    assert re.findall(r'<td class="number">(0\.\d\d)</td></tr>', text) == ["0.16", "0.05"]


def test_cubic_interpolation_has_a_row_at_its_rank() -> None:
    _, rows = table_of_points([outcome([22.0], lr=1), outcome([21.0], lr=2), outcome([None], lr=3)])
    assert [row[0] for row in rows] == ["1", "cubic", "2", "3"]
    assert [row[1:3] for row in rows] == [["22.00", "+0.50"], ["21.50", ""], ["21.00", "-0.50"], ["-", "-"]]


def test_the_baseline_is_that_of_the_best_validation() -> None:
    lines = [
        {"event": "validation", "step": step, "psnr_slice": psnr, "cubic_psnr_slice": cubic}
        for step, psnr, cubic in ((10, 22.0, 21.0), (20, 20.0, 19.0))
    ]
    assert (read_baseline(lines, 10), read_baseline(lines, None), read_baseline([], 10)) == (21.0, 19.0, None)


def test_the_picture_of_the_curves_has_the_baseline() -> None:
    curves = [(CURVE, 0)]
    assert learning_curves_png(curves, [21.5]) != learning_curves_png(curves)


def test_the_table_aligns_its_columns() -> None:
    points = [outcome([22.0], lr=0.0002, size=4), outcome([None], lr=0.001, size=16)]
    header, _, first, _, second = results_table(points).splitlines()
    assert header.index("size") == first.index("4 ") == second.index("16")
    assert header.index("status") == first.index("done") == second.index("failed")


def test_importance_is_1_for_a_parameter_that_explains_all_and_0_for_one_that_explains_nothing() -> None:
    points = [{"lr": lr, "size": size} for lr in (0.1, 0.2, 0.3) for size in (2, 4)]
    shares = importance(points, [10.0 * point["lr"] for point in points])
    assert list(shares) == ["lr", "size"]
    assert shares["lr"] == pytest.approx(1)
    assert shares["size"] == pytest.approx(0, abs=1e-9)
    assert importance(points, [1.0] * 6) == {"lr": 0.0, "size": 0.0}


def test_many_numbers_are_grouped_into_bins() -> None:
    points = [{"lr": number / 100} for number in range(40)]
    steps = [float(number >= 20) for number in range(40)]
    assert importance(points, steps)["lr"] == pytest.approx(1)
    alternating = [float(number % 2) for number in range(40)]
    assert importance(points, alternating)["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "values", [[1, 2], ["a", "b"], [True, False], list(range(9)), [10.0**-n for n in range(9)], [3, 3]]
)
def test_any_kind_of_parameter_is_drawn(tmp_path: Path, values: list[object]) -> None:
    png = coordinates_png([{"key": value} for value in values], [float(number) for number in range(len(values))])
    (tmp_path / "picture.png").write_bytes(png)
    assert matplotlib.image.imread(tmp_path / "picture.png").std() > 0


def test_numbers_lie_at_their_values_and_words_at_equal_distances() -> None:
    places, marks = _positions([1.0, 2.0, 5.0])
    assert places == pytest.approx([0, 0.25, 1])
    assert marks == [(0.0, "1"), (0.25, "2"), (1.0, "5")]
    assert _positions([1e-5, 1e-3, 1e-1])[0] == pytest.approx([0, 0.5, 1])
    assert _positions(["b", "a", "c"])[0] == [0.5, 0, 1]
    # Ticks whose labels would overlap are removed.
    assert _positions([19.50, 19.51, 22.0])[1] == [(0.0, "19.5"), (1.0, "22")]


def test_a_curve_is_read_from_a_log_whose_last_line_was_cut_off() -> None:
    log = (
        '{"event": "train", "epoch": 0.5}\n{"event": "validation", "epoch": 1.0, "psnr_slice": 20.0}\n'
        '{"event": "validation", "epoch": 2.0, "psnr_slice": 21.5}\n{"event": "validation", "epo'
    )
    assert read_curve(parse_log(log)) == ((1.0, 20.0), (2.0, 21.5))
    assert read_curve(parse_log("")) == ()


def test_a_trial_that_failed_in_its_second_attempt_has_the_steps_and_the_time_of_both(tmp_path: Path) -> None:
    config = SweepConfig(tmp_path, TrainSettings(DataConfig("shards")), space={"optim.lr": [0.1]})
    run = tmp_path / RUNS / name_run({"optim.lr": 0.1})
    run.mkdir(parents=True)
    lines = [("train", 10, 4.0), ("validation", 10, 5.0), ("train", 20, 9.5)]
    text = "".join(
        json.dumps({"event": kind, "step": step, "seconds": s, "epoch": 1}) + "\n" for kind, step, s in lines
    )
    (run / LOG).write_text(text)
    # Ray reports the second attempt alone.
    metrics = failure_report("step 23: expected a finite loss") | {"time_total_s": 2.0}
    result = SimpleNamespace(config={POINT: {"optim.lr": 0.1}}, metrics=metrics, error=None, checkpoint=None)
    trial = read_trial(config, result)
    assert (trial.step, trial.seconds, trial.status) == (20, 9.5, "failed: step 23: expected a finite loss")


def test_only_the_newest_state_files_count_and_a_truncated_file_is_not_complete() -> None:
    names = ["tuner.pkl", "experiment_state-2026-01-02_03-04-05.json", "experiment_state-2026-01-02_03-04-06.json"]
    assert newest_of_each_kind(names) == ["experiment_state-2026-01-02_03-04-06.json", "tuner.pkl"]
    assert is_complete(b'{"a": 1}')
    assert is_complete(pickle.dumps({"a": 1}))
    assert not is_complete(b'{"a": ')
    assert not is_complete(pickle.dumps({"a": 1})[:-3])
    assert not is_complete(b"")


def test_a_curve_of_one_validation_is_drawn() -> None:
    assert learning_curves_png([(((1.0, 20.0),), 0), (CURVE, 1)])


def test_the_last_line_of_a_traceback_describes_the_error() -> None:
    assert last_line("Traceback:\n  file\nValueError: no\n\n") == "ValueError: no"
    assert last_line("") == "str"


@pytest.mark.parametrize(
    ("resources", "nodes", "count"),
    [
        (ResourceConfig(), [(2, 0)], 2),
        (ResourceConfig(cpus_per_worker=4), [(2, 0), (3, 0)], 0),
        (ResourceConfig(workers_per_trial=2), [(1, 0)], 0),
        (ResourceConfig(workers_per_trial=2), [(1, 0), (1, 0)], 1),
        (ResourceConfig(workers_per_trial=2, cpus_per_worker=2), [(3, 0), (3, 0), (3, 0)], 1),
        (ResourceConfig(cpus_per_worker=0.1), [(0.3, 0)], 3),
        (ResourceConfig(gpus_per_worker=0.5), [(8, 1)], 2),
        (ResourceConfig(workers_per_trial=8, cpus_per_worker=4, gpus_per_worker=1), [(64, 8)] * 3, 3),
        (ResourceConfig(gpus_per_worker=1), [(8, 0)], 0),
    ],
)
def test_trials_that_fit_are_counted_node_by_node(
    resources: ResourceConfig, nodes: list[tuple[float, float]], count: int
) -> None:
    assert count_fitting(resources, nodes) == count


def test_curves_of_one_validation_are_left_out(tmp_path: Path) -> None:
    point = outcome([20.0], lr=1)
    short = replace(point, trials=tuple(replace(trial, curve=CURVE[:1]) for trial in point.trials))
    write_sweep_report(tmp_path / "report.html", [short])
    assert "Learning curves" not in (tmp_path / "report.html").read_text()
