"""Nodes with caches of their own: each downloads its own groups, and one that is lost can be replaced by another."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty import FaultyServer
from runs import command, environment, lines, losses, trained, wait_for

from upfield.distributed.launch import free_port
from upfield.distributed.samples.order import SampleOrder
from upfield.sharding.shardset.manifest import read_manifest

SEED, BATCH, GROUPS, WINDOW = 3, 8, 2, 2
# An epoch has 22 steps.
SETTINGS = ("--run.seed", str(SEED), "--data.batch_size", str(BATCH), "--data.groups", str(GROUPS))
SETTINGS += ("--data.window_shards", str(WINDOW), "--run.max_steps", "44", "--run.checkpoint_every", "5")
KILLED_AT = 10


@contextlib.contextmanager
def training_nodes(address: str, out: Path, caches: list[Path], *arguments: str) -> Iterator[list[subprocess.Popen]]:
    """Start the real script once for each node, as a launcher on each node would."""
    variables = {"WORLD_SIZE": str(len(caches)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    variables |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    with contextlib.ExitStack() as stack:
        nodes: list[subprocess.Popen] = []
        for rank, cache in enumerate(caches):
            own = {**environment(), **variables, "RANK": str(rank)}
            own_arguments = ("--data.cache_dir", str(cache), "--data.trace", str(out / "trace.jsonl"), *arguments)
            log = stack.enter_context((out.parent / f"{out.name}-{rank}-{os.urandom(2).hex()}.log").open("wb"))
            started = command(address, out, *SETTINGS, *own_arguments)
            nodes.append(stack.enter_context(subprocess.Popen(started, env=own, stdout=log, stderr=log)))
            stack.callback(nodes[-1].kill)
        yield nodes


def wait_for_all(nodes: list[subprocess.Popen]) -> list[int]:
    return [node.wait(timeout=180) for node in nodes]


def weights_of(out: Path) -> bytes:
    return (out / "checkpoints/last/model.safetensors").read_bytes()


def shards_in(cache: Path, root: Path) -> set[str]:
    names = {entry.sha256: entry.name for entry in read_manifest(root).shards("train")}
    return {names[path.stem] for path in cache.glob("*.tar") if path.stem in names}


def own_shards(root: Path, rank: int, nodes: int) -> set[str]:
    entries = read_manifest(root).shards("train")
    order = SampleOrder(SEED, np.array([entry.samples for entry in entries]), BATCH, WINDOW, GROUPS)
    streams = order.streams_of(order.groups_of(rank, nodes))
    return {entries[shard].name for stream in streams for shard in stream.piece.shards}


@pytest.mark.slow
def test_a_node_is_killed_and_replaced_by_one_with_an_empty_cache(
    tiny_shards: Path, http_store: FaultyServer, tmp_path: Path
) -> None:
    alone = trained(tiny_shards, tmp_path / "alone", *SETTINGS)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    with training_nodes(http_store.url, undisturbed, [tmp_path / "zero", tmp_path / "one"]) as nodes:
        assert wait_for_all(nodes) == [0, 0]
    caches = [tmp_path / "first", tmp_path / "second"]
    with training_nodes(http_store.url, out, caches) as nodes:
        wait_for(out / "checkpoints" / f"step-{KILLED_AT:08d}")
        nodes[1].send_signal(signal.SIGKILL)
        assert wait_for_all(nodes)[0] != 0
    assert KILLED_AT <= max(line["step"] for line in lines(out / "trace.jsonl")) < 22
    kept = shards_in(caches[0], tiny_shards)
    http_store.asked.clear()
    caches[1] = tmp_path / "replacement"
    with training_nodes(http_store.url, out, caches) as nodes:
        assert wait_for_all(nodes) == [0, 0]
    own = [own_shards(tiny_shards, rank, 2) for rank in range(2)]
    assert [shards_in(cache, tiny_shards) for cache in caches] == own
    # Only a shard that is cut belongs to both nodes.
    assert len(own[0] & own[1]) <= 1
    asked = {name for name in http_store.asked if name.startswith("train/") and name.endswith(".tar")}
    assert asked == {f"{name}.tar" for name in own[1] | (own[0] - kept)}
    assert lines(out / "trace.jsonl") == lines(undisturbed / "trace.jsonl") == lines(alone / "trace.jsonl")
    assert weights_of(out) == weights_of(undisturbed)
    assert losses(out) == pytest.approx(losses(alone), rel=1e-4)
