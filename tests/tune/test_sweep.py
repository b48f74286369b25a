"""A sweep trains every point with the same `fit`, survives killed processes, and leaves its best run to export."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sweeps import TIMEOUT_S, command, environment, rows, run_sweep, write_config

from upfield.tune import sweep

# These values differ from run to run.
OF_THE_MACHINE = ("seconds", "slices_per_s", "data_wait", "memory_gb")
# Ray's names for processes of one-worker trials and for workers that train together.
TRIAL_PROCESS, WORKER_PROCESS = "ray::ImplicitFunc", "RayTrainWorker"


def log_of(run: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in OF_THE_MACHINE}
        for line in lines
        if line["event"] == event
    ]


def test_a_sweep_ranks_its_points_and_links_the_best_run(tiny_shards: Path, tmp_path: Path) -> None:
    text = "space: {optim.lr: [1.0e+30, 1.0e-3]}\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 4, validate_every: 2")
    out = tmp_path / "sweep"
    done = run_sweep(config, out)
    results = rows(out / "results.csv")
    assert [float(row["optim.lr"]) for row in results] == [1e-3, 1e30]
    (best,) = (run for run in (out / "trials").iterdir() if "lr=0.001" in run.name)
    highest = max(line["psnr_slice"] for line in log_of(best, "validation"))
    assert float(results[0]["psnr_slice"]) == pytest.approx(highest, abs=1e-3)
    # A learning rate that makes the loss infinite fails its trial, and the sweep continues.
    assert results[1]["psnr_slice"] == ""
    assert "failed: step" in results[1]["status"]
    assert "expected a finite loss" in results[1]["status"]
    assert (out / "best").resolve() == best.resolve() == Path(results[0]["run"]).resolve()
    assert (out / "best" / "best" / "model.safetensors").is_file()
    assert (out / "best" / "config.yaml").is_file()
    assert "Learning curves" in (out / "report.html").read_text()
    assert "validation PSNR (dB)" in done.stdout


@pytest.mark.slow
def test_points_are_compared_over_seeds_and_a_finished_sweep_trains_nothing(tiny_shards: Path, tmp_path: Path) -> None:
    text = "space: {optim.lr: [1.0e-3, 1.0e-5]}\nseeds: 2\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 4, validate_every: 2")
    out = tmp_path / "sweep"
    done = run_sweep(config, out)
    results, trials = rows(out / "results.csv"), rows(out / "trials.csv")
    assert [row["seeds"] for row in results] == ["2", "2"]
    for row in results:
        scores = [float(trial["psnr_slice"]) for trial in trials if trial["optim.lr"] == row["optim.lr"]]
        assert float(row["psnr_slice"]) == pytest.approx(sum(scores) / 2, abs=1e-3)
        assert float(row["psnr_slice_std"]) > 0
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*.safetensors")}
    again = run_sweep(config, out)
    assert again.stdout == done.stdout
    # Truncate a state file, as a killed driver leaves it. The runs hold all that the repaired sweep needs.
    newest = max((out / "ray").glob("experiment_state-*.json"))
    newest.write_bytes(newest.read_bytes()[:1000])
    repaired = run_sweep(config, out)
    assert repaired.stdout == done.stdout
    assert f"because it has damaged files: {newest.name}" in repaired.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("*.safetensors")} == before


@pytest.mark.slow
def test_a_trial_that_can_never_be_placed_is_refused_at_once(
    tiny_shards: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    config = write_config(tmp_path, tiny_shards, "space: {optim.lr: [1.0e-3]}\nresources: {cpus_per_worker: 999}\n")
    code, _, err = run_cli(sweep.main, "--config", config, "--out", tmp_path / "sweep")
    assert code == 2
    assert "a trial needs 1 processes of 999 CPUs and 0 GPUs each" in err
    assert "it has 1 nodes with" in err
    assert not (tmp_path / "sweep").exists()


def test_asha_with_several_seeds_is_refused(tiny_shards: Path, tmp_path: Path, run_cli: Callable) -> None:
    text = "space: {optim.lr: [1.0e-3]}\nscheduler: asha\nseeds: 2\n"
    code, _, err = run_cli(sweep.main, "--config", write_config(tmp_path, tiny_shards, text), "--out", tmp_path / "out")
    assert code == 2
    assert "--scheduler asha and --seeds 2 cannot be combined" in err


@pytest.mark.slow
def test_a_finished_sweep_may_be_moved(tiny_shards: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_shards, "space: {optim.lr: [1.0e-3, 1.0e-4]}\n", ", max_steps: 2")
    run_sweep(config, tmp_path / "sweep")
    before = rows(tmp_path / "sweep" / "results.csv")
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    (tmp_path / "sweep").rename(moved)
    run_sweep(config, moved.parent / ".." / "elsewhere" / "moved")
    after = rows(moved / "results.csv")
    assert [row["psnr_slice"] for row in after] == [row["psnr_slice"] for row in before]
    assert (moved / "best" / "best" / "model.safetensors").is_file()
    assert all(Path(row["run"]).is_dir() for row in after)


@pytest.mark.slow
def test_asha_stops_bad_trials_early(tiny_shards: Path, tmp_path: Path) -> None:
    text = (
        "space: {optim.lr: [3.0e-3, 1.0e-12, 1.0e-13, 1.0e-14]}\nscheduler: asha\nmax_concurrent_trials: 1\n"
        "asha: {grace_epochs: 1, reduction_factor: 2}\n"
    )
    config = write_config(tmp_path, tiny_shards, text, ", epochs: 4")
    run_sweep(config, tmp_path / "sweep")
    trials = {float(row["optim.lr"]): row for row in rows(tmp_path / "sweep" / "trials.csv")}
    assert trials[3e-3]["status"] == "done"
    assert trials[3e-3]["step"] == str(4 * 45)
    stopped = [trials[lr] for lr in (1e-12, 1e-13, 1e-14)]
    assert {row["status"] for row in stopped} == {"stopped early"}
    assert all(int(row["step"]) < 4 * 45 for row in stopped)


@pytest.mark.slow
def test_asha_remembers_the_trials_it_compared_after_a_restart(
    tiny_shards: Path, tmp_path: Path, started: Callable
) -> None:
    text = (
        "space: {optim.lr: [3.0e-3, 1.0e-12]}\nscheduler: asha\nmax_concurrent_trials: 1\n"
        "asha: {grace_epochs: 1, reduction_factor: 2}\n"
    )
    config = write_config(tmp_path, tiny_shards, text, ", epochs: 4")
    process = started(config, tmp_path / "sweep")
    log = tmp_path / "log-0"
    wait_for(lambda: ": done" in log.read_text(), "the good trial")
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130
    run_sweep(config, tmp_path / "sweep")
    trials = {float(row["optim.lr"]): row for row in rows(tmp_path / "sweep" / "trials.csv")}
    assert (trials[3e-3]["status"], trials[1e-12]["status"]) == ("done", "stopped early")
    assert int(trials[1e-12]["step"]) < 4 * 45


@pytest.mark.slow
def test_two_workers_train_a_trial_like_one(tiny_shards: Path, tmp_path: Path) -> None:
    text = "space: {optim.lr: [1.0e-3]}\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 6, validate_every: 3")
    run_sweep(config, tmp_path / "one")
    run_sweep(config, tmp_path / "two", "--resources.workers_per_trial", "2", "--resources.cpus_per_worker", "0.5")
    one, two = (rows(tmp_path / name / "trials.csv")[0] for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == ("1", "2")
    assert two["status"] == "done"
    assert float(two["psnr_slice"]) == pytest.approx(float(one["psnr_slice"]), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_optuna_proposes_points(tiny_shards: Path, tmp_path: Path, seeds: int) -> None:
    text = (
        "space: {optim.lr: {loguniform: [1.0e-5, 1.0e-2]}, data.batch_size: [2, 4], run.max_steps: {int: [1, 3]}}\n"
        f"search: optuna\ntrials: 3\nseeds: {seeds}\n"
    )
    config = write_config(tmp_path, tiny_shards, text)
    run_sweep(config, tmp_path / "sweep")
    results = rows(tmp_path / "sweep" / "results.csv")
    assert len(results) == 3
    assert {row["seeds"] for row in results} == {str(seeds)}
    assert all(1e-5 <= float(row["optim.lr"]) <= 1e-2 and row["status"] == "done" for row in results)
    assert all(int(row["run.max_steps"]) in (1, 2, 3) for row in results)


@pytest.mark.slow
def test_optuna_tries_each_point_of_a_small_space_once(tiny_shards: Path, tmp_path: Path) -> None:
    text = "space: {optim.lr: [1.0e-3, 1.0e-4], run.max_steps: {int: [1, 2]}}\nsearch: optuna\ntrials: 9\n"
    config = write_config(tmp_path, tiny_shards, text)
    done = run_sweep(config, tmp_path / "sweep")
    results = rows(tmp_path / "sweep" / "results.csv")
    assert len({(row["optim.lr"], row["run.max_steps"]) for row in results}) == len(results) == 4
    assert {(row["status"], row["seeds"]) for row in results} == {("done", "1")}
    assert "optuna: 4 points; the search ends" in done.stderr


def descendants(process: int, name: str) -> list[psutil.Process]:
    """Return the descendants of a process whose command lines contain `name`."""
    descendants: list[psutil.Process] = []
    try:
        children = psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return descendants
    for child in children:
        try:
            if name in " ".join(child.cmdline()):
                descendants.append(child)
        except psutil.NoSuchProcess:
            continue
    return descendants


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + TIMEOUT_S / 2
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"timed out waiting for {what}")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[Path, Path], "subprocess.Popen[str]"]]:
    """A function that starts a sweep in the background; the sweep and its descendants are killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(config: Path, out: Path) -> "subprocess.Popen[str]":
        with (tmp_path / f"log-{len(processes)}").open("w") as log:
            process = subprocess.Popen(command(config, out), env=environment(), stdout=log, stderr=log, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        for child in descendants(process.pid, ""):
            child.kill()
        process.kill()
        process.wait()


LONG = ", max_steps: 60, validate_every: 15, checkpoint_every: 5, log_every: 5"


def survives_a_kill(process: "subprocess.Popen[str]", out: Path, name: str, number: int) -> None:
    """Kill the last of `number` processes once there is a checkpoint, and check that the sweep still succeeds."""
    log = out.parent / "log-0"
    wait_for(lambda: list(out.glob("trials/*/checkpoints/step-00000010")), "a checkpoint")
    victims = descendants(process.pid, name)
    assert len(victims) == number
    victims[-1].kill()
    assert process.wait(TIMEOUT_S) == 0, log.read_text()
    assert "again after 1 failures" in log.read_text()


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_continues_from_its_checkpoint(
    tiny_shards: Path, tmp_path: Path, started: Callable
) -> None:
    config = write_config(tmp_path, tiny_shards, "space: {optim.lr: [1.0e-3]}\n", LONG)
    run_sweep(config, tmp_path / "undisturbed")
    out = tmp_path / "sweep"
    survives_a_kill(started(config, out), out, TRIAL_PROCESS, 1)
    (ours,), (theirs,) = (list((folder / "trials").iterdir()) for folder in (out, tmp_path / "undisturbed"))
    for event in ("train", "validation"):
        assert log_of(ours, event) == log_of(theirs, event)
    assert rows(out / "trials.csv")[0]["status"] == "done"


@pytest.mark.slow
def test_a_killed_worker_costs_its_trial_one_failure(tiny_shards: Path, tmp_path: Path, started: Callable) -> None:
    text = "space: {optim.lr: [1.0e-3]}\nresources: {workers_per_trial: 2, cpus_per_worker: 0.5}\n"
    config = write_config(tmp_path, tiny_shards, text, LONG)
    out = tmp_path / "sweep"
    survives_a_kill(started(config, out), out, WORKER_PROCESS, 2)
    (run,) = (out / "trials").iterdir()
    assert [line["step"] for line in log_of(run, "validation")] == [15, 30, 45, 60]
    (trial,) = rows(out / "trials.csv")
    assert (trial["status"], trial["processes"]) == ("done", "2")


@pytest.mark.slow
def test_a_trial_that_diverges_on_several_workers_is_not_retried(tiny_shards: Path, tmp_path: Path) -> None:
    text = "space: {optim.lr: [1.0e+30, 1.0e-3]}\nresources: {workers_per_trial: 2, cpus_per_worker: 0.5}\n"
    config = write_config(tmp_path, tiny_shards, text, ", max_steps: 4, validate_every: 2")
    done = run_sweep(config, tmp_path / "sweep")
    results = rows(tmp_path / "sweep" / "results.csv")
    assert [row["status"][:12] for row in results] == ["done", "failed: step"]
    assert "again after" not in done.stderr


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_continues_without_repeating_finished_trials(
    tiny_shards: Path, tmp_path: Path, started: Callable
) -> None:
    text = "space: {optim.lr: [1.0e-3, 1.0e-4, 1.0e-5]}\nmax_concurrent_trials: 1\n"
    config = write_config(tmp_path, tiny_shards, text, LONG)
    out = tmp_path / "sweep"
    process = started(config, out)
    log = tmp_path / "log-0"
    wait_for(lambda: ": done" in log.read_text() and len(list(out.glob("trials/*/checkpoints/last"))) > 1, "a trial")
    below = descendants(process.pid, "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = next(run for run in (out / "trials").iterdir() if "lr=0.001" in run.name)
    written = (first / "checkpoints" / "step-00000060" / "progress.json").stat().st_mtime_ns
    run_sweep(config, out)
    assert (first / "checkpoints" / "step-00000060" / "progress.json").stat().st_mtime_ns == written
    results = rows(out / "results.csv")
    assert {row["status"] for row in results} == {"done"}
    assert len(results) == 3
    for run in (out / "trials").iterdir():
        assert [line["step"] for line in log_of(run, "validation")] == [15, 30, 45, 60]
        assert [line["step"] for line in log_of(run, "train")] == list(range(5, 61, 5))
    assert not any(child.is_running() and TRIAL_PROCESS in " ".join(child.cmdline()) for child in below)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_how_to_continue(
    tiny_shards: Path, tmp_path: Path, started: Callable, number: signal.Signals
) -> None:
    config = write_config(tmp_path, tiny_shards, "space: {optim.lr: [1.0e-3]}\n", LONG)
    out = tmp_path / "sweep"
    process = started(config, out)
    wait_for(lambda: list(out.glob("trials/*/checkpoints/step-00000010")), "a checkpoint")
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == 130
    log = (tmp_path / "log-0").read_text()
    assert "interrupted; finished trials are kept, and the same command continues the sweep" in log
    assert "Traceback" not in log
    assert not (out / "results.csv").exists()
    run_sweep(config, out)
    (run,) = (out / "trials").iterdir()
    assert [line["step"] for line in log_of(run, "validation")] == [15, 30, 45, 60]


@pytest.mark.slow
def test_the_reports_space_is_searched_at_a_small_scale(tiny_shards: Path, tmp_path: Path) -> None:
    space = Path(sweep.__file__).parent / "spaces" / "report.yaml"
    small = {"model.preset": "tiny", "run.max_steps": "4", "run.validate_every": "2", "run.precision": "no"}
    small |= {"run.trackers": "[]", "data.shards": str(tiny_shards)}
    flags = [word for key, value in small.items() for word in (f"--train.{key}", value)]
    run_sweep(space, tmp_path / "sweep", *flags, "--trials", "4")
    results = rows(tmp_path / "sweep" / "results.csv")
    assert len(results) == 4
    assert {row["status"] for row in results} == {"done"}
    assert all(float(row["optim.lr"]) in (1e-4, 2e-4, 5e-4) for row in results)
    assert all(row["data.batch_size"] in ("2", "4", "8") and 40 <= int(row["run.epochs"]) <= 80 for row in results)
    assert len({(row["optim.lr"], row["data.batch_size"], row["run.epochs"]) for row in results}) == 4
