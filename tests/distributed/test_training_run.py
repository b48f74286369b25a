"""A run is set up the same way each time, in the precision that it states."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from upfield.distributed import training_run
from upfield.distributed.checkpoint import PROGRESS, TrainingProgress, read_progress
from upfield.distributed.configuration import DataConfig, RunConfig, TrainConfig
from upfield.distributed.learner import with_plain_strides
from upfield.distributed.process_group import make_fsdp_plugin
from upfield.distributed.training_run import choose_and_record_memory_plan
from upfield.sharding.shardset.manifest import read_manifest

GIB = 2**30


def test_a_checkpoint_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    progress = asdict(TrainingProgress(step=7))
    for name in ("hardware", "activation_checkpointing", "micro_batch"):
        del progress[name]
    (tmp_path / PROGRESS).write_text(json.dumps(progress))
    assert read_progress(tmp_path) == TrainingProgress(step=7)


@pytest.mark.parametrize("version", ["1", "2"])
def test_split_weights_are_computed_in_the_precision_of_whole_ones(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    assert make_fsdp_plugin() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    plugin = make_fsdp_plugin()
    assert plugin is not None
    plugin.set_mixed_precision("bf16")  # as Accelerate does
    policy = plugin.mixed_precision_policy
    assert [getattr(policy, name) for name in ("param_dtype", "reduce_dtype")] == [None, None]


def test_a_resumed_run_repeats_its_memory_plan_on_the_same_hardware(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    gpus = {"name": "H100", "bytes": 16 * GIB}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: gpus["name"])
    monkeypatch.setattr(training_run, "free_gpu_bytes", lambda _: gpus["bytes"])
    manifest = read_manifest(tiny_shards)
    monkeypatch.setattr(type(manifest), "sample_shape", lambda *_: (1, 221, 200))

    def plan(progress: TrainingProgress, **settings: Any) -> tuple[str, int]:
        config = TrainConfig(DataConfig("set", batch_size=32, **settings), run=RunConfig(out=Path("run")))
        chosen = choose_and_record_memory_plan(config, manifest, accelerator, progress)
        assert (progress.activation_checkpointing, progress.micro_batch) == (chosen.checkpointing, chosen.micro_batch)
        return chosen.checkpointing, chosen.micro_batch

    progress = TrainingProgress()
    assert plan(progress) == ("selective", 4)
    gpus["bytes"] = 80 * GIB
    assert plan(TrainingProgress()) == ("none", 16)
    assert plan(progress) == ("selective", 4)
    assert plan(progress, micro_batch=2) == ("selective", 2)
    gpus["name"] = "H200"
    assert plan(progress) == ("none", 16)


def test_gradients_of_1x1_convolutions_have_the_strides_of_their_weights() -> None:
    values = torch.rand(6, 2)
    for gradient in (values.as_strided((6, 2, 1, 1), (2, 1, 2, 2)), values.T.contiguous().T[:, :, None, None]):
        assert with_plain_strides(gradient).equal(values[:, :, None, None])
    assert with_plain_strides(values.as_strided((6, 2, 1, 1), (2, 1, 2, 2))).stride() == (2, 1, 1, 1)
