"""The batch scripts of the repository, submitted to a real Slurm of two nodes."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import lines, losses, training_lines
from slurmcluster import SlurmCluster, slurm_cluster

pytestmark = pytest.mark.cluster

SMALL = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=20"]
TINY = ["--model.preset", "tiny", "--run.precision", "no", "--run.log_every", "1", "--optim.lr", "1e-3"]
BATCH = 10
# Longer than the shortest time limit of Slurm.
UNDISTURBED_S = 75


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,
        slurm_cluster(Path(folder)) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def short(slurm: SlurmCluster, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of two nodes."""
    out = tmp_path_factory.mktemp("short") / "run"
    job = slurm.submit("train.sbatch", SMALL, *training(tiny_shards, out, 18))
    (state,) = slurm.finished(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "0"), slurm.log_of(job)
    assert state["NodeList"] == "node[1-2]"
    assert "2 processes on cpu" in slurm.log_of(job)
    return out


@pytest.fixture(scope="module")
def steps(short: Path) -> int:
    """Number of steps that take longer than the time limit."""
    rate = statistics.median(line["slices_per_s"] for line in training_lines(short))
    return max(18, int(UNDISTURBED_S * rate / BATCH))


def training(shards: Path, out: Path, steps: int) -> list[object]:
    length = ["--data.batch_size", BATCH, "--run.max_steps", steps, "--run.epochs", 100_000]
    return ["--data.shards", shards, "--run.out", out, "--data.trace", out / "trace.jsonl", *TINY, *length]


def test_two_nodes_train_to_the_end(slurm: SlurmCluster, short: Path) -> None:
    assert [line["step"] for line in lines(short / "trace.jsonl")] == list(range(1, 19))
    assert (short / "best" / "model.safetensors").is_file()
    assert slurm.processes_left() == []


def test_a_run_that_reaches_its_time_limit_trains_like_an_undisturbed_one(
    slurm: SlurmCluster, steps: int, tiny_shards: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    job = slurm.submit("train.sbatch", SMALL, *training(tiny_shards, undisturbed, steps))
    assert slurm.finished(job)[0]["JobState"] == "COMPLETED", slurm.log_of(job)
    # One minute is the shortest time limit. Slurm warns 5 to 35 s before it, because it checks every half minute.
    limit = [*SMALL[:3], "--time=1", "--signal=B:TERM@5"]
    job = slurm.submit("train.sbatch", limit, *training(tiny_shards, out, steps))
    (state,) = slurm.finished(job, timeout_s=1200)
    log = slurm.log_of(job)
    assert state["JobState"] == "COMPLETED", log
    restarts = int(state["Restarts"])
    assert restarts >= 1
    # One log holds all restarts in their order.
    assert log.count("stopped before it was finished; requeued") == restarts
    assert log.count("the same command continues from there") >= 1
    assert log.count("ended with exit code 0") == 1
    assert losses(out) == losses(undisturbed)
    assert (out / "trace.jsonl").read_bytes() == (undisturbed / "trace.jsonl").read_bytes()
    weights = "best/model.safetensors"
    assert (out / weights).read_bytes() == (undisturbed / weights).read_bytes()


def test_preempted_ranks_save_and_continue_when_their_job_is_requeued(
    slurm: SlurmCluster, tiny_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = slurm.submit("train.sbatch", SMALL, *training(tiny_shards, out, 60), "--run.checkpoint_every", 5)
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "step-00000005").exists():
        assert time.monotonic() < deadline, slurm.log_of(job)
        time.sleep(0.1)
    # Signal only the steps, as Slurm does at the start of the grace time.
    slurm.ask("scancel", "--signal=TERM", job)
    (state,) = slurm.finished(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.log_of(job)
    assert "stopped by a signal after step" in slurm.log_of(job)
    assert [line["step"] for line in lines(out / "trace.jsonl")] == list(range(1, 61))


def test_wrong_input_ends_the_job_with_exit_code_2_and_no_restart(slurm: SlurmCluster, tmp_path: Path) -> None:
    job = slurm.submit("train.sbatch", SMALL, *training(tmp_path / "nowhere", tmp_path / "run", 2))
    (state,) = slurm.finished(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0"), slurm.log_of(job)
    assert "expected a" in slurm.log_of(job)


def test_an_image_file_is_entered_by_apptainer_on_every_rank(
    slurm: SlurmCluster, tiny_shards: Path, tmp_path: Path
) -> None:
    # A stand-in for Apptainer, which Debian does not package: it records its arguments and runs the command.
    stand_in = tmp_path / "apptainer"
    stand_in.write_text(f'#!/bin/sh\necho "$RANK $LOCAL_WORLD_SIZE $*" >> {tmp_path}/entered\nshift 5\nexec "$@"\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{slurm.environment['PATH']}"
    image = tmp_path / "upfield.sif"
    arguments = training(tiny_shards, tmp_path / "run", 2)
    one_node = [*SMALL, "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2"]
    job = slurm.submit("train.sbatch", one_node, "--container", image, *arguments, PATH=path)
    (state,) = slurm.finished(job)
    assert state["JobState"] == "COMPLETED", slurm.log_of(job)
    entered = sorted((tmp_path / "entered").read_text().splitlines())
    assert [line.split()[:2] for line in entered] == [["0", "2"], ["1", "2"]]
    assert all("exec --nv --bind" in line and f"{image} upfield train" in line for line in entered)


def test_each_task_of_an_array_builds_one_set(
    slurm: SlurmCluster, tiny_cohort: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    plain = tiny_cohort / "cohorts.yaml"
    thick = tmp_path / "thick.yaml"
    thick.write_text(f"context: 1\nroot: {tiny_cohort}\n{plain.read_text()}")
    options = ["--cpus-per-task=1", "--array=0-1", "--time=20"]
    job = slurm.submit("shard.sbatch", options, tmp_path / "sets", plain, thick, "--", "--seed", 0)
    states = slurm.finished(job)
    assert [state["JobState"] for state in states] == ["COMPLETED"] * 2, slurm.log()
    assert hashes(tmp_path / "sets" / "cohorts") == hashes(tiny_shards)
    assert json.loads((tmp_path / "sets" / "thick" / "manifest.json").read_text())["config"]["context"] == 1


def test_an_array_of_another_size_than_the_configurations_is_refused(slurm: SlurmCluster, tiny_cohort: Path) -> None:
    job = slurm.submit("shard.sbatch", ["--array=0-2", "--cpus-per-task=1"], "sets", tiny_cohort / "cohorts.yaml")
    assert {state["ExitCode"] for state in slurm.finished(job)} == {"2:0"}
    assert "expected --array=0-0" in slurm.log()


def test_two_nodes_build_one_set_by_ray_with_the_same_bytes(
    slurm: SlurmCluster, tiny_cohort: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    options = ["--nodes=2", "--cpus-per-task=1", "--time=20"]
    job = slurm.submit("shard.sbatch", options, tmp_path / "sets", tiny_cohort / "cohorts.yaml")
    assert [state["JobState"] for state in slurm.finished(job)] == ["COMPLETED"], slurm.log()
    assert "Ray runs on 2 nodes" in slurm.log()
    assert hashes(tmp_path / "sets" / "cohorts") == hashes(tiny_shards)
    assert slurm.processes_left() == []


def sweep_of(steps: int, shards: Path, file: Path) -> Path:
    run = f"{{precision: 'no', max_steps: {steps}, epochs: 100000, checkpoint_every: 2}}"
    file.write_text(
        f"train: {{data: {{shards: {shards}}}, model: {{preset: tiny}}, run: {run}}}\n"
        "space: {optim.lr: [1.0e-4, 1.0e-3]}\nmax_concurrent_trials: 2\n"
    )
    return file


def test_a_sweep_runs_on_the_ray_cluster_of_its_job(slurm: SlurmCluster, tiny_shards: Path, tmp_path: Path) -> None:
    sweep = sweep_of(2, tiny_shards, tmp_path / "sweep.yaml")
    job = slurm.submit("tune.sbatch", SMALL, "--config", sweep, "--out", tmp_path / "sweep")
    (state,) = slurm.finished(job)
    assert state["JobState"] == "COMPLETED", slurm.log_of(job)
    assert "Ray runs on 2 nodes" in slurm.log_of(job)
    assert len((tmp_path / "sweep" / "results.csv").read_text().splitlines()) == 3
    assert (tmp_path / "sweep" / "best" / "best" / "model.safetensors").is_file()
    assert slurm.processes_left() == []


def test_a_sweep_continues_after_slurm_requeues_its_job(slurm: SlurmCluster, tiny_shards: Path, tmp_path: Path) -> None:
    sweep = sweep_of(60, tiny_shards, tmp_path / "sweep.yaml")
    job = slurm.submit("tune.sbatch", SMALL, "--config", sweep, "--out", tmp_path / "sweep")
    deadline = time.monotonic() + 200
    while not list((tmp_path / "sweep").glob("**/checkpoints/step-*")):
        assert time.monotonic() < deadline, slurm.log_of(job)
        time.sleep(0.5)
    # The same signal as at the time limit, without waiting for it.
    slurm.ask("scancel", "--batch", "--signal=TERM", job)
    (state,) = slurm.finished(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.log_of(job)
    assert slurm.log_of(job).count("Ray runs on 2 nodes") == 2
    assert len((tmp_path / "sweep" / "results.csv").read_text().splitlines()) == 3
    assert slurm.processes_left() == []


def hashes(shards: Path) -> dict[str, str]:
    """Return the hash of each shard of a set."""
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    return {shard["name"]: shard["sha256"] for split in splits.values() for shard in split["shards"]}
