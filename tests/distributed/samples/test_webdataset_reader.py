"""The webdataset reader: the same samples as the exact one, in streams that divide the shards and take equal steps."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import FaultyServer
from runs import called, command, forked, lines

from upfield.common.errors import CommandError, InputError, ShardSetError
from upfield.distributed.configuration import AugmentConfig, DataConfig, DegradeConfig
from upfield.distributed.samples.reader import Batch, BatchPlan, TrainingBatches, read_batch
from upfield.distributed.samples.splits import open_splits
from upfield.distributed.samples.webdataset_reader import StreamedBatches, refuse_unfit_streams
from upfield.distributed.samples.webdataset_stream import StreamSeed, shuffle_shards
from upfield.sharding.shardset.remote import remote_files
from upfield.sharding.shardset.shard_split import ShardSplit

PLAN = BatchPlan(0, 20, 2, AugmentConfig(), 0, 1)
READER = ("--data.reader", "webdataset", "--data.batch_size", "20", "--data.shuffle_buffer", "50")


@pytest.fixture(scope="module")
def split(tiny_shards: Path) -> ShardSplit:
    return ShardSplit(tiny_shards, "train")


def loaded(split: ShardSplit, steps: range, num_workers: int = 0, plan: BatchPlan = PLAN) -> list[Batch]:
    return list(StreamedBatches(split, plan, 50).load(steps, num_workers, prefetch=2, pin_memory=False))


def numbers(batches: list[Batch]) -> list[int]:
    return [number for batch in batches for number in batch.samples.tolist()]


def shards_of(split: ShardSplit, samples: list[int]) -> set[int]:
    return set((split.shard_starts.searchsorted(samples, side="right") - 1).tolist())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_holds_the_samples_it_names_and_epochs_differ(split: ShardSplit, num_workers: int) -> None:
    batches = loaded(split, range(18), num_workers)
    for batch in batches[::5]:
        alone = read_batch(split, batch.samples.tolist())
        assert torch.equal(batch.low, alone.low)
        assert torch.equal(batch.high, alone.high)
        assert batch.low.dtype == alone.low.dtype == torch.float16
    first, second = numbers(batches[:9]), numbers(batches[9:])
    assert first != second
    assert shards_of(split, first) == shards_of(split, second) == set(range(len(split.entries)))
    assert numbers(loaded(split, range(18), num_workers)) == first + second


def test_each_epoch_visits_the_shards_in_an_order_of_its_own(split: ShardSplit) -> None:
    batches = list(StreamedBatches(split, PLAN, 1).load(range(18), 0, prefetch=1, pin_memory=False))
    orders = [shuffle_shards(len(split.entries), StreamSeed(0, epoch, 0)).tolist() for epoch in range(2)]
    assert orders[0] != orders[1]
    for epoch, order in enumerate(orders):
        samples = numbers(batches[9 * epoch : 9 * epoch + 9])
        visited = split.shard_starts.searchsorted(samples, side="right") - 1
        assert list(dict.fromkeys(visited.tolist())) == order


def test_one_stream_reads_every_sample_once(split: ShardSplit) -> None:
    assert Counter(numbers(loaded(split, range(9)))) == Counter(range(180))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_threads_divide_the_shards_and_what_is_left_out_is_counted(
    split: ShardSplit, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    # These names are common, and the library would take them for its own.
    monkeypatch.setenv("WORKER", "1")
    monkeypatch.setenv("NUM_WORKERS", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[Counter[int]] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        seen.append(Counter(numbers(loaded(split, range(9), num_workers, replace(PLAN, rank=rank, world_size=2)))))
    assert not seen[0].keys() & seen[1].keys()
    assert [counts.total() for counts in seen] == [90, 90]
    assert shards_of(split, [*seen[0], *seen[1]]) == set(range(len(split.entries)))
    left_out, repeated = 180 - len(seen[0] + seen[1]), sum(count - 1 for count in (seen[0] + seen[1]).values())
    batches = StreamedBatches(split, replace(PLAN, world_size=2), 50)
    assert batches.count_unequal(0, max(1, num_workers)) == (left_out, repeated)
    assert f"leaves out {left_out} of 180 samples and repeats {repeated}" in batches.describe(num_workers)


def test_a_resumed_run_reads_the_rest_of_the_epoch_in_another_order(split: ShardSplit) -> None:
    resumed = loaded(split, range(4, 18), 2)
    assert len(resumed) == 14
    whole = loaded(split, range(18), 2)
    assert numbers(resumed[:5]) != numbers(whole[4:9])


def test_samples_are_augmented_as_in_the_exact_reader(split: ShardSplit) -> None:
    degrade = DegradeConfig(gamma=(0.5, 2), noise_std=(0.1, 0.2))
    plan = replace(PLAN, augment=AugmentConfig((16, 16), shift_pixels=2, intensity_jitter=0.1, degrade=degrade))
    streamed = loaded(split, range(1), 0, plan)[0]
    exact = TrainingBatches(split, plan)
    same = exact.read(split, 0, streamed.samples.numpy(), lambda shape: torch.empty(shape, dtype=torch.float16))
    assert torch.equal(streamed.low, same.low)
    assert torch.equal(streamed.high, same.high)


def test_a_loader_that_is_closed_early_leaves_no_threads_and_no_open_files(split: ShardSplit) -> None:
    split.close()
    gc.collect()  # This closes what earlier tests have left open.
    files = len(os.listdir("/proc/self/fd"))
    loader = StreamedBatches(split, PLAN, 50).load(range(1000), 2, prefetch=2, pin_memory=False)
    next(loader)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]
    loader.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]
    assert len(os.listdir("/proc/self/fd")) <= files


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def swap_samples(path: Path) -> None:
    """Exchange the first two samples, which leaves the size of the shard as it is."""
    data = path.read_bytes()
    index = [line.split() for line in path.with_suffix(".idx").read_text().splitlines()[1:3]]
    starts = [int(words[1]) - 512 for words in index]
    end = 2 * starts[1] - starts[0]
    path.write_bytes(data[starts[1] : end] + data[: starts[1]] + data[end:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, 9000), r"expected train/\d+\.tar of \d+ bytes, found 9000"),
        (lambda path: append(path, b"more"), r"expected train/\d+\.tar of \d+ bytes, found \d+"),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), r"train/\d+\.tar cannot be read \(\w+"),
        (swap_samples, r"has a sample \S+ that its index does not list there"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b".json\0", b".josn\0")),
            r"expected the members high\.npy, json, low\.npy, found high\.npy, josn, low\.npy",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"'<f2'", b"'|O' ")),
            r"low\.npy cannot be read \(Object arrays cannot be loaded",
        ),
    ],
)
def test_a_damaged_shard_ends_the_loader(tiny_shards: Path, tmp_path: Path, damage: Any, message: str) -> None:
    root = shutil.copytree(tiny_shards, tmp_path / "shards")
    for tar in (root / "train").glob("*.tar"):
        damage(tar)
    with pytest.raises(ShardSetError, match=message):
        loaded(ShardSplit(root, "train"), range(9))


@pytest.fixture
def data(http_store: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(remote_files, "FIRST_BACKOFF_S", 0.001)
    return DataConfig(
        http_store.url, reader="webdataset", cache_dir=tmp_path / "cache", cache_bytes=10**6, fetch_retries=2
    )


def test_a_remote_set_is_read_without_the_librarys_own_commands(
    data: DataConfig, split: ShardSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(import_module("webdataset.gopen"), "Popen", refuse)
    monkeypatch.setenv("GOPEN_REWRITE", "train=pipe:false")
    remote, _ = open_splits(data)
    assert numbers(loaded(remote, range(9))) == numbers(loaded(split, range(9)))


PROGRAM = """
import sys, urllib.request
data = urllib.request.urlopen(sys.argv[1]).read()
FAULT
sys.stdout.buffer.write(data)
"""
FAULTS = {
    "": "",
    "fails in the middle": "if '.tar' in sys.argv[1]: sys.stdout.buffer.write(data[:9000]); sys.exit('reset')",
    "ends early": "data = data[:-9000] if '.tar' in sys.argv[1] else data",
}


def with_command(data: DataConfig, tmp_path: Path, fault: str = "") -> DataConfig:
    program = tmp_path / "download.py"
    program.write_text(PROGRAM.replace("FAULT", FAULTS[fault]))
    return replace(data, fetch_command=f"{sys.executable} -S {program} {{url}}")


def test_all_files_come_through_the_command(data: DataConfig, split: ShardSplit, tmp_path: Path) -> None:
    remote, validation = open_splits(with_command(data, tmp_path))
    assert numbers(loaded(remote, range(1))) == numbers(loaded(split, range(1)))
    assert torch.equal(read_batch(validation, [3]).low, read_batch(ShardSplit(split.root, "val"), [3]).low)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fails in the middle", r"it ended with exit code 1, and its last message was: reset\. Check"),
        ("ends early", r"the file has \d+ bytes\. Check"),
    ],
)
def test_nothing_of_a_shard_that_did_not_arrive_is_used(
    data: DataConfig, http_store: FaultyServer, tmp_path: Path, fault: str, message: str
) -> None:
    remote, _ = open_splits(with_command(data, tmp_path, fault))
    batches: list[Batch] = []
    tries = r"\.tar: 3 tries to download \d+ bytes of sha256 \w+ with the command \S+ -S \S+ \{url\} failed; the last "
    with pytest.raises(CommandError, match=tries + r"error was: " + message):
        batches += StreamedBatches(remote, PLAN, 50).load(range(9), 0, prefetch=2, pin_memory=False)
    assert not batches
    assert 3 in {count for name, count in http_store.asked.items() if name.endswith(".tar")}


def test_too_few_shards_and_a_small_cache_are_refused(data: DataConfig, split: ShardSplit) -> None:
    with pytest.raises(
        InputError, match=r"at least 8 training shards, one for each of 4 processes x 2 threads .*found 7"
    ):
        refuse_unfit_streams(replace(data, num_workers=2), split, 4)
    remote, _ = open_splits(data)
    with pytest.raises(
        InputError, match=r"cache_bytes: expected at least \d+, for 4 training shards and 1 validation "
    ):
        refuse_unfit_streams(replace(data, cache_bytes=1000), remote, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.shards", "pipe:cat a.tar"], "pipe:cat a.tar is a command, and shards must not run commands"),
        (["--data.shards", "{pipe:cat a,b}/train/0.tar"], "is a command, and shards must not run commands"),
        (["--data.shards", "a/train/0.tar::pipe:cat a.tar"], "is a command, and shards must not run commands"),
        (["--data.fetch_command", "s5cmd cat"], "expected a program with {url} in place of the file's address"),
        (["--data.fetch_command", "s5cmd 'cat {url}"], "cannot be split into words (No closing quotation)"),
        (["--data.fetch_command", "cat {url}"], "is in a folder, so nothing is downloaded. Leave the command out"),
        (
            ["--data.groups", "4"],
            "belongs to the exact reader and cannot be combined with data.reader webdataset. Leav",
        ),
        (["--data.mix", "{kind: {real: 1.0}}"], "Leave out --data.mix, or choose --data.reader exact."),
        (["--data.fetch", "samples"], "Leave out --data.fetch samples, or choose --data.reader exact."),
        (
            ["--data.fetch", "samples", "--data.fetch_command", "cat {url}"],
            "single samples cannot be fetched. Leave out --data.fetch_command or --data.fetch.",
        ),
        (["--data.shuffle_buffer", "0"], "data.shuffle_buffer: expected at least 1, found 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tiny_shards: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, said = called(*command(tiny_shards, tmp_path / "run", *READER, *arguments)[2:])
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_failing_command_ends_the_run_with_code_2(data: DataConfig, tmp_path: Path) -> None:
    shards = f"{data.shards}/train/{{000000..000006}}.tar"
    arguments = ("--data.fetch_command", "false {url}", "--data.fetch_retries", "0", "--data.cache_dir", str(tmp_path))
    code, said = called(*command(shards, tmp_path / "run", *READER, *arguments)[2:])
    assert code == 2, said
    assert "manifest.json: 1 try to download the file with the command false {url} failed" in said


def test_two_ranks_take_equal_steps_and_see_every_shard(split: ShardSplit, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (*READER, "--data.batch_size", "60", "--run.max_steps", "3", "--data.trace", str(out / "trace.jsonl"))
    shards = f"{split.root}/train/{{000000..000006}}.tar"
    with forked(shards, out, *arguments, processes=2) as job:
        assert job.wait() == [0, 0], job.said
        assert "divides 7 shards among 2 x 1 streams; the first epoch leaves out " in job.said
    trace = lines(out / "trace.jsonl")
    assert [(line["epoch"], len(line["keys"])) for line in trace] == [(0, 60)] * 3
    places = {split.key(number): number for number in range(split.num_samples)}
    assert shards_of(split, [places[key] for line in trace for key in line["keys"]]) == set(range(7))
    by_rank = [{places[key] for line in trace for key in line["keys"][half]} for half in (slice(30), slice(30, 60))]
    assert not by_rank[0] & by_rank[1]
    assert json.loads((out / "checkpoints" / "last" / "progress.json").read_text())["reader"] == "webdataset"
