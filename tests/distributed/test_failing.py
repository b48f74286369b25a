"""A failure costs as little work as possible, and is reported once."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import (
    called,
    command,
    environment,
    fork_ranks,
    forked,
    lines,
    run,
    train_on_full_disk,
    trained,
    training,
    wait_for,
)
from safetensors.torch import load_file

from upfield.common.command import parse
from upfield.common.errors import InputError, RunError
from upfield.common.stop_signals import StopRequest
from upfield.distributed.checkpoint import TrainingProgress
from upfield.distributed.configuration import DataConfig
from upfield.distributed.job import find_finished, with_absolute_paths
from upfield.distributed.launch import SCRIPT, free_port
from upfield.distributed.process_group import wait_for_main_node
from upfield.distributed.train import COMMAND, main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.shard_split import ShardSplit

SPOILT = 77


@pytest.fixture(scope="module")
def four_steps(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four") / "run"
    return trained(tiny_shards, out, "--run.max_steps", "4", "--run.checkpoint_every", "2")


@pytest.fixture
def copied(four_steps: Path, tmp_path: Path) -> Path:
    shutil.copytree(four_steps, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def one_line(stderr: str) -> str:
    """Return the only error that a job printed, among the warnings of its processes."""
    errors = [line for line in stderr.splitlines() if "error:" in line and "upfield train" in line]
    assert len(errors) == 1, stderr
    return errors[0]


def test_a_run_resumes_from_an_older_checkpoint_if_the_last_is_damaged(tiny_shards: Path, copied: Path) -> None:
    weights = copied / "checkpoints" / "step-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    code, said = called(*command(tiny_shards, copied, "--run.max_steps", "5")[2:])
    assert code == 0
    assert "step-00000004: the checksum of model.safetensors is wrong; trying an older checkpoint" in said
    assert "training from step 2 to step 5" in said
    assert (copied / "checkpoints" / "last").resolve().name == "step-00000005"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(copied: Path) -> None:
    from upfield.distributed.checkpoint import find_checkpoint

    for folder in (copied / "checkpoints").glob("step-*"):
        (folder / "optimizer.pt").unlink()
    with pytest.raises(InputError, match="all 2 checkpoints are damaged"):
        find_checkpoint(copied, "auto")
    with pytest.raises(InputError, match=r"because optimizer.pt is missing. Set --run.resume to"):
        find_checkpoint(copied, str(copied / "checkpoints" / "step-00000002"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_ends_the_run_and_leaves_the_previous_checkpoint(
    tiny_shards: Path, copied: Path, name: str
) -> None:
    size = (copied / "checkpoints/last" / name).stat().st_size
    arguments = command(tiny_shards, copied, "--run.max_steps", "6", "--run.checkpoint_every", "1")[2:]
    with fork_ranks(partial(train_on_full_disk, size * 3 // 4, arguments), 1) as job:
        assert job.wait() == [1]
        assert "the checkpoint of step 5 could not be written" in one_line(job.said)
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == [
        "last",
        "step-00000002",
        "step-00000004",
    ]
    _, said = called(*command(tiny_shards, copied, "--run.max_steps", "5")[2:])
    assert "training from step 4 to step 5" in said


def test_a_second_job_for_the_same_run_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    with training(tiny_shards, tmp_path / "run"):
        code, said = called(*command(tiny_shards, tmp_path / "run")[2:])
    assert code == 2
    assert "another job is training this run" in one_line(said)


def test_batches_without_a_finite_loss_can_be_skipped_up_to_a_limit(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--optim.lr", "1e30", "--run.on_nonfinite", "skip", "--run.max_skips", "2", "--run.max_steps", "9")
    code, said = called(*command(tiny_shards, tmp_path / "run", *arguments)[2:])
    assert code == 1
    assert "batch skipped, 1 of at most 2" in said
    assert "batch skipped, 2 of at most 2" in said
    assert "after 2 skipped batches (run.max_skips)" in one_line(said)
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 2


@pytest.fixture(scope="module")
def spoilt_shards(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_shards` with a NaN in the training sample number `SPOILT`."""
    shards = tmp_path_factory.mktemp("spoilt") / "shards"
    shutil.copytree(tiny_shards, shards)
    split = ShardSplit(shards, "train")
    (stretch,) = split.stretches([SPOILT])
    with (shards / f"{split.entries[stretch.shard].name}.tar").open("r+b") as file:
        file.seek(stretch.start + split._low_start)
        file.write(np.array([np.nan], dtype=np.float16).tobytes())
    return shards


def test_a_batch_with_one_bad_sample_is_skipped_and_training_continues(
    tiny_shards: Path, spoilt_shards: Path, tmp_path: Path
) -> None:
    # With this seed, the spoilt sample is in the batch of step 4.
    arguments = ("--run.max_steps", "6", "--run.checkpoint_every", "1", "--run.keep_checkpoints", "99")
    arguments += (
        "--run.seed",
        "2",
        "--run.on_nonfinite",
        "skip",
        "--optim.ema_decay",
        "0.9",
        "--run.validate_every",
        "1000",
    )
    out = tmp_path / "run"
    trace = ("--data.trace", str(out / "trace.jsonl"))
    with forked(spoilt_shards, out, *arguments, *trace, processes=2) as job:
        assert job.wait() == [0, 0], job.said
        message = job.said
    spoilt = ShardSplit(tiny_shards, "train").key(SPOILT)
    entry = next(line for line in lines(out / "trace.jsonl") if spoilt in line["keys"])
    step, place = entry["step"], entry["keys"].index(spoilt)
    said = next(line for line in message.splitlines() if "batch skipped, 1 of at most 10" in line)
    assert said.startswith(f"step {step}: expected a finite loss")
    # The message names the two samples of the rank that read the bad sample, but not those of the other rank.
    assert [key in said for key in entry["keys"]] == [i // 2 == place // 2 for i in range(4)]
    before, after, later = (
        load_file(out / f"checkpoints/step-{s:08d}/model.safetensors") for s in step_and_around(step)
    )
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    assert not all(later[name].equal(tensor) for name, tensor in after.items())
    average = [load_file(out / f"checkpoints/step-{s:08d}/average.safetensors") for s in (step - 1, step)]
    assert all(average[1][name].equal(tensor) for name, tensor in average[0].items())
    logged = next(line for line in lines(out / "metrics.jsonl") if line["step"] == step)
    assert "loss" not in logged
    assert logged["skipped"] == 1


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_sample_is_skipped_alike_whenever_the_host_reads_the_values(
    spoilt_shards: Path, tmp_path: Path, processes: int
) -> None:
    # With this seed, the spoilt sample is in the batch of step 4.
    arguments = ("--run.max_steps", "7", "--run.on_nonfinite", "skip", "--optim.ema_decay", "0.9", "--run.seed", "2")
    arguments += ("--optim.schedule", "cosine", "--run.validate_every", "1000")
    late, now = (
        trained(spoilt_shards, tmp_path / every, *arguments, "--run.log_every", every, processes=processes)
        for every in ("1000", "1")
    )
    for name in ("model.safetensors", "average.safetensors"):
        one, other = (load_file(out / "checkpoints/last" / name) for out in (late, now))
        assert all(one[key].equal(other[key]) for key in other)
    progress = [json.loads((out / "checkpoints/last/progress.json").read_text()) for out in (late, now)]
    assert progress[0] == progress[1]
    assert progress[0]["skipped"] == 1


def step_and_around(step: int) -> tuple[int, int, int]:
    return step - 1, step, step + 1


def test_a_process_that_sees_another_set_or_no_checkpoint_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    from upfield.distributed.preconditions import refuse_other_view

    manifest = read_manifest(tiny_shards)
    config = DataConfig("shards")
    refuse_other_view(config, manifest, manifest.data_sha256, tmp_path)
    with pytest.raises(InputError, match="the shard set differs between nodes"):
        refuse_other_view(config, manifest, "0" * 64, None)
    with pytest.raises(InputError, match="the first node found this checkpoint, but another node cannot see it"):
        refuse_other_view(config, manifest, manifest.data_sha256, tmp_path / "gone")


def test_folders_with_names_like_checkpoints_are_not_touched(tiny_shards: Path, copied: Path) -> None:
    (copied / "checkpoints" / "step-best").mkdir()
    kept = copied / "checkpoints" / "kept_good"
    shutil.copytree(copied / "checkpoints" / "step-00000002", kept)
    trained(tiny_shards, copied, "--run.max_steps", "3", "--run.resume", str(kept))
    found = sorted(path.name for path in (copied / "checkpoints").iterdir())
    assert found == ["kept_good", "last", "step-00000002", "step-00000003", "step-best"]


MULTI_CPU = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_CPU",
    "num_processes": 2,
    "use_cpu": True,
}


def trained_by_launcher(shards: Path, out: Path, *asked: str) -> tuple[list[int | None], str]:
    """Train in a forked rank with the environment that Accelerate's launcher gives to its only process."""
    script = out.with_name("environment.py")
    script.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    done = run(sys.executable, "-m", "accelerate.commands.launch", *asked, str(script))
    program = partial(main, command(shards, out, "--run.max_steps", "1")[2:])
    with fork_ranks(program, 1, json.loads(done.stdout)) as job:
        return job.wait(), job.said


@pytest.mark.parametrize("how", ["flags", "configuration file"])
def test_a_launcher_that_starts_too_few_processes_is_refused(tiny_shards: Path, tmp_path: Path, how: str) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(json.dumps(MULTI_CPU))
    asked = ("--cpu", "--num_processes", "2") if how == "flags" else ("--config_file", str(file))
    codes, said = trained_by_launcher(tiny_shards, tmp_path / "run", *asked)
    assert codes == [1]
    assert "accelerate launch was asked for several processes (MASTER_ADDR is set) but started only one" in one_line(
        said
    )


def test_a_launcher_that_is_asked_for_one_process_trains(tiny_shards: Path, tmp_path: Path) -> None:
    codes, said = trained_by_launcher(tiny_shards, tmp_path / "run", "--cpu", "--num_processes", "1")
    assert codes == [0], said
    assert "1 process on cpu" in said


def test_a_file_that_is_not_a_trace_is_not_overwritten(tiny_shards: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("remember\n")
    code, said = called(
        "--data.shards", str(tiny_shards), "--run.out", str(tmp_path / "run"), "--data.trace", str(notes)
    )
    assert code == 2
    assert "this file exists and is not a trace" in said
    assert notes.read_text() == "remember\n"


def test_two_processes_print_a_refusal_once(tiny_shards: Path, four_steps: Path, tmp_path: Path) -> None:
    arguments = ("--run.resume", str(four_steps / "checkpoints/last"), "--run.seed", "9")
    code, said = called(*command(tiny_shards, tmp_path / "run", *arguments, "--processes", "2")[2:])
    assert code == 2
    assert len(said.splitlines()) == 1
    with forked(tiny_shards, tmp_path / "run", *arguments, processes=2) as job:
        assert job.wait() == [2, 2]
        assert "this checkpoint was trained with seed 0, but the run has 9" in one_line(job.said)


def finished(shards: Path, run: Path, *arguments: str) -> TrainingProgress | None:
    """Return what a process finds out about a run before it joins the others."""
    given = command(shards, run, "--run.max_steps", "4", "--run.checkpoint_every", "2", *arguments)[2:]
    return find_finished(with_absolute_paths(parse(COMMAND, [*given, "--data.trace", str(run / "trace.jsonl")])))


def test_only_a_complete_run_of_the_same_configuration_is_finished(tiny_shards: Path, four_steps: Path) -> None:
    progress = finished(tiny_shards, four_steps)
    assert progress is not None
    assert progress.step == 4
    assert finished(tiny_shards, four_steps, "--run.max_steps", "5") is None
    assert finished(tiny_shards, four_steps, "--optim.lr", "2e-3") is None
    assert finished(tiny_shards, four_steps, "--run.resume", "none") is None


def test_a_run_that_was_not_validated_at_its_end_is_not_finished(tiny_shards: Path, copied: Path) -> None:
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace(str(Path(config.split("out: ")[1].split()[0])), str(copied)))
    file = copied / "checkpoints/step-00000004/progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"validated_step": 2}))
    assert finished(tiny_shards, copied) is None


def test_a_lost_process_that_starts_again_after_the_others_have_finished_does_not_wait_for_them(
    tiny_shards: Path, four_steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "gone.invalid"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    arguments = ("--run.max_steps", "4", "--run.checkpoint_every", "2", "--data.trace", str(four_steps / "trace.jsonl"))
    code, said = called(*command(tiny_shards, four_steps, *arguments)[2:])
    assert code == 0
    assert "training is already complete at step 4 of 4" in said


def test_the_seconds_of_a_run_continue_and_other_settings_are_named(tiny_shards: Path, copied: Path) -> None:
    *earlier, last = lines(copied / "metrics.jsonl")
    log = [*earlier, last | {"seconds": 1000.0}]
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    config = yaml.safe_load((copied / "config.yaml").read_text())
    # Earlier versions did not know this setting.
    del config["data"]["augment"]["degrade"]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    code, said = called(*command(tiny_shards, copied, "--run.max_steps", "5", "--optim.clip_norm", "9")[2:])
    assert code == 0
    changes = ("optim.clip_norm none -> 9", "run.max_steps 4 -> 5", "run.checkpoint_every 2 -> none")
    assert f"this run continues with changed settings: {', '.join(changes)}\n" in said
    assert 1000 < lines(copied / "metrics.jsonl")[-1]["seconds"] < 1500


def test_a_main_node_whose_name_never_resolves_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "gone.invalid")
    with pytest.raises(RunError, match=r"MASTER_ADDR: gone.invalid could not be resolved within 0 s"):
        wait_for_main_node(0, StopRequest())
    with pytest.raises(KeyboardInterrupt):
        wait_for_main_node(60, StopRequest(asked=True))


def test_a_process_that_dies_ends_the_job(tiny_shards: Path, tmp_path: Path) -> None:
    with training(tiny_shards, tmp_path / "run", processes=2) as job:
        job.ranks[1].kill()
        assert job.wait() == [1, -signal.SIGKILL]
        assert "Another process of the job ended or did not respond" in one_line(job.said)


@pytest.mark.parametrize(("name", "message"), [("tensorbord", "found tensorbord"), ("wandb", "wandb is not installed")])
def test_unknown_and_missing_trackers_are_refused(name: str, message: str) -> None:
    from upfield.distributed.preconditions import refuse_trackers

    with pytest.raises(InputError, match=message):
        refuse_trackers(["tensorboard", name])


def node(shards: Path, out: Path, rank: int, port: int, *arguments: str) -> "subprocess.Popen[str]":
    """Start the process of one machine, in a job of two machines with one process each."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
    start += ["--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
    start += ["--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments = tuple(command(shards, out, *arguments)[2:])
    return subprocess.Popen([*start, str(SCRIPT), *arguments], env=environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_machines_train_one_run_and_one_ends_after_the_other(tiny_shards: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    arguments = ("--run.epochs", "100000", "--run.checkpoint_every", "2", "--run.timeout_s", "20")
    first, second = (node(tiny_shards, out, rank, port, *arguments) for rank in range(2))
    with first, second:
        try:
            wait_for(out / "checkpoints" / "step-00000002")
            second.kill()  # The rank of this launcher ends with the launcher.
            begun = time.monotonic()
            _, stderr = first.communicate(timeout=120)
            assert time.monotonic() - begun < 100
        finally:
            first.kill()
            second.kill()
    assert first.returncode not in (0, None)
    assert "2 processes on cpu" in stderr
    assert "Another process of the job ended or did not respond" in one_line(stderr)
    assert json.loads((out / "checkpoints/last/progress.json").read_text())["step"] >= 2
