"""Weights that FSDP splits over processes can be trained, averaged, saved and resumed like whole ones."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import split_weights
from runs import command, fork_ranks, run, trained
from safetensors.torch import load_file


@pytest.mark.slow
def test_a_learner_with_split_weights_is_saved_whole_and_resumes_from_it(tmp_path: Path) -> None:
    with fork_ranks(partial(split_weights.main, tmp_path), processes=2) as job:
        assert job.wait() == [0, 0], job.said
    split, resumed, whole, alone = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("split", "resumed", "whole", "alone")
    )
    assert split.keys() == alone.keys()
    kinds = {name.partition("/")[0] for name in split}
    assert kinds == {"weights", "average", "optimizer"}
    for name, tensor in split.items():
        assert tensor.equal(resumed[name]), name
        for other in (whole, alone):
            assert other[name].flatten().tolist() == pytest.approx(tensor.flatten().tolist(), abs=1e-5), name


CONFIG = Path(__file__).parents[2] / "cluster" / "accelerate" / "fsdp.yaml"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", "2"]
LAUNCH += [str(Path(__file__).with_name("fsdp_on_cpus.py"))]


@pytest.mark.slow
def test_the_loop_trains_and_resumes_with_the_committed_configuration(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.max_steps", "6", "--run.checkpoint_every", "2", "--run.keep_checkpoints", "9")
    arguments += ("--optim.ema_decay", "0.9", "--optim.clip_norm", "0.5")

    def train(out: Path, *more: str) -> None:
        done = run(*LAUNCH, *command(tiny_shards, out, *arguments, *more)[2:])
        assert done.returncode == 0, done.stderr

    train(tmp_path / "split")
    shutil.copytree(tmp_path / "split", tmp_path / "resumed", symlinks=True)
    train(tmp_path / "resumed", "--run.resume", str(tmp_path / "resumed" / "checkpoints" / "step-00000002"))
    whole = trained(tiny_shards, tmp_path / "whole", *arguments)
    for name in ("model.safetensors", "average.safetensors"):
        split, resumed, expected = (
            load_file(out / "checkpoints/step-00000006" / name)
            for out in (tmp_path / "split", tmp_path / "resumed", whole)
        )
        assert all(split[key].equal(resumed[key]) for key in split)
        assert max((split[key] - expected[key]).abs().max().item() for key in expected) < 1e-4


@pytest.mark.slow
def test_split_weights_train_in_bf16_like_whole_ones(tiny_shards: Path, tmp_path: Path) -> None:
    arguments = ("--run.max_steps", "6", "--run.precision", "bf16")
    done = run(*LAUNCH, *command(tiny_shards, tmp_path / "split", *arguments)[2:])
    assert done.returncode == 0, done.stderr
    types = json.loads(done.stdout.strip().splitlines()[-1])
    assert types.pop("features") == "bfloat16"
    assert types == dict.fromkeys(("low", "noise", "gating", "restored", "reduced gradient"), "float32")
    whole = trained(tiny_shards, tmp_path / "whole", *arguments, processes=2)
    split, expected = (load_file(out / "checkpoints/last/model.safetensors") for out in (tmp_path / "split", whole))
    assert max((split[key] - expected[key]).abs().max().item() for key in expected) < 1e-6
