"""Runs with groups and a mix resume exactly, on any number of processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import called, command, forked, lines, trained, training_lines

from upfield.common.errors import InputError
from upfield.distributed.checkpoint import TrainingProgress, find_resume_point
from upfield.distributed.configuration import AugmentConfig, MixConfig
from upfield.distributed.samples.reader import BatchPlan, TrainingBatches
from upfield.sharding.shardset.shard_split import ShardSplit

SHARES = {"real": 0.25, "synthetic": 0.75}
FLAGS = ("--data.window_shards", "2", "--data.mix", json.dumps({"kind": SHARES}))


def batches_of(shards: Path, groups: int) -> TrainingBatches:
    split = ShardSplit(shards, "train")
    return TrainingBatches(split, BatchPlan(0, 4, 2, AugmentConfig(), 0, 1, groups, MixConfig(kind=SHARES)))


def test_a_run_goes_on_in_mid_epoch_on_other_processes_with_its_groups(tiny_shards: Path, tmp_path: Path) -> None:
    out = trained(tiny_shards, tmp_path / "run", *FLAGS, "--data.groups", "2", "--run.max_steps", "3")
    flags = (*FLAGS, "--run.max_steps", "6", "--data.trace", str(out / "trace.jsonl"))
    with forked(tiny_shards, out, *flags, processes=2) as job:
        assert job.wait() == [0, 0], job.said
        said = job.said
    batches = batches_of(tiny_shards, groups=2)
    assert "2 groups of shards (data.groups); this node reads all of them" in said
    assert f"an epoch has {batches.steps_per_epoch} steps with" in said
    expected = [[batches.split.key(sample) for sample in batches.samples_at(step)] for step in range(6)]
    assert [line["keys"] for line in lines(out / "trace.jsonl")] == expected
    assert [(line["share_real"], line["share_synthetic"]) for line in training_lines(out)] == [(0.25, 0.75)] * 6


def test_a_checkpoint_of_an_earlier_version_has_one_group_and_no_mix(tiny_run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    (file,) = out.glob("checkpoints/step-*/progress.json")
    saved = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in saved.items() if name not in ("groups", "mix")}))
    fresh = replace(TrainingProgress(**saved), step=0, groups=4)
    progress = find_resume_point(out, "auto", fresh, keep_groups=True).progress
    assert (progress.step, progress.groups, progress.mix) == (2, 1, {})
    with pytest.raises(InputError, match="was trained with groups 1, but the run has 4"):
        find_resume_point(out, "auto", fresh)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.groups", "4"), "was trained with groups 1, but the run has 4, which changes the sample order"),
        (("--data.mix.kind", "{real: 1.0}"), "was trained with mix none, but the run has {'kind': {'real': 1.0}"),
        (("--data.mix.kind", "{reel: 1.0}"), "the train split of {root} has no samples of reel. It has real ("),
    ],
)
def test_another_order_than_that_of_the_run_is_refused(
    tiny_shards: Path, tiny_run: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "new" if "reel" in str(flags) else tiny_run
    code, said = called(*command(tiny_shards, out, *flags)[2:])
    assert code == 2
    assert message.replace("{root}", str(tiny_shards)) in said
