"""One measurement: nodes as forked processes that read the same epochs at the same time."""

import ctypes
import hashlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reader import OURS, SHAPE, numbers_of

from nodes.readers import READERS, Reading, import_library
from nodes.servers import TrafficLog, free_ports

FORKS = multiprocessing.get_context("fork")
LONGEST_S = 120.0
NEW_MOUNTS, PRIVATE = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE


@dataclass(frozen=True)
class EpochResult:
    """What all nodes together did in one epoch."""

    time_s: float
    """Seconds until the last node had its last batch. Those of the first epoch include opening the set."""
    samples: int
    """Number of samples read."""
    different: int
    """Number of different samples read."""
    sent_bytes: int
    """Number of bytes that the servers sent."""
    requests: int
    """Number of requests."""
    trace: str
    """Digest of the samples of each step, in the order of the ranks."""

    @property
    def rate(self) -> float:
        """Samples per second of all nodes together."""
        return self.samples / self.time_s


def run_nodes(reading: Reading, folder: Path, log: Path) -> dict[str, Any]:
    """Let the nodes read, each into its own cache `folder/RANK`. Return the results of `reading.epochs` epochs."""
    import_library(reading.reader)
    barrier, (port,) = FORKS.Barrier(reading.nodes, timeout=LONGEST_S), free_ports(1)
    nodes = [
        FORKS.Process(target=run_node, args=(reading, rank, folder, log, barrier, port))
        for rank in range(reading.nodes)
    ]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    if any(node.exitcode for node in nodes):
        errors = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*-error.txt"))]
        raise SystemExit(f"exit codes {[node.exitcode for node in nodes]}: {errors[0] if errors else 'no error'}")
    epochs = [asdict(epoch_result(reading, folder, epoch)) for epoch in range(reading.epochs)]
    caches = [
        sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) for cache in folder.glob("*-cache")
    ]
    return {"epochs": epochs, "cache_bytes": max(caches)}


def run_node(reading: Reading, rank: int, folder: Path, log: Path, barrier: Barrier, port: int) -> None:
    """Read the epochs on one node, or leave the text of the error in `folder`."""
    try:
        if reading.nodes > 1 and reading.reader != OURS:
            own_shared_memory()
        os.environ.update(node_environment(rank, reading.nodes, port, folder))
        read_epochs(reading, rank, folder, log, barrier)
    except BaseException as error:
        traceback.print_exc()
        (folder / f"{rank}-error.txt").write_text(" ".join(repr(error).split()), encoding="utf-8")
        barrier.abort()
        os._exit(1)
    # Some threads of the libraries never end.
    os._exit(0)


def read_epochs(reading: Reading, rank: int, folder: Path, log: Path, barrier: Barrier) -> None:
    """Read the epochs at the same time as the other nodes, and save the samples. Rank 0 measures."""
    cache = folder / f"{rank}-cache"
    cache.mkdir()
    traffic = TrafficLog(log)
    barrier.wait()
    begun = time.perf_counter()
    epochs = READERS[reading.reader](reading, rank, cache)
    for number in range(reading.epochs):
        batches = [checked_numbers(low, high) for low, high in next(epochs)]
        barrier.wait()
        if rank == 0:
            time_s, sent = time.perf_counter() - begun, traffic.since_last()
            np.save(folder / f"measured-{number}.npy", [time_s, sent.sent_bytes, sent.requests])
        np.savez(folder / f"{rank}-{number}.npz", *(np.array(batch) for batch in batches))
        barrier.wait()
        begun = time.perf_counter()


def checked_numbers(low: Any, high: Any) -> list[int]:
    """Return the numbers of the samples of a batch, after a check that its low and high field belong together."""
    numbers = numbers_of(low)
    assert low.dtype == high.dtype == torch.float16, f"expected float16, found {low.dtype} and {high.dtype}"
    assert low.shape == high.shape == (len(numbers), *SHAPE), f"shapes {low.shape} and {high.shape}"
    assert numbers == numbers_of(high), "a low and a high field that do not belong together"
    return numbers


def node_environment(rank: int, nodes: int, port: int, folder: Path) -> dict[str, str]:
    """Return the variables that launchers set, and LitData's names for two of them."""
    own = {"RANK": rank, "GLOBAL_RANK": rank, "WORLD_SIZE": nodes, "NNODES": nodes, "NODE_RANK": rank}
    own |= {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    temporary = folder / f"{rank}-tmp"
    temporary.mkdir()
    return {name: str(value) for name, value in own.items()} | {"TMPDIR": str(temporary)}


def own_shared_memory() -> None:
    """Mount an empty /dev/shm for this process alone, as on a node of its own. This needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, PRIVATE, None):
        raise SystemExit(f"a /dev/shm for each node: {os.strerror(ctypes.get_errno())}")
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None):
        raise SystemExit(f"a /dev/shm for each node: {os.strerror(ctypes.get_errno())}")


def epoch_result(reading: Reading, folder: Path, epoch: int) -> EpochResult:
    """Combine what the nodes have saved about an epoch."""
    time_s, sent_bytes, requests = np.load(folder / f"measured-{epoch}.npy").tolist()
    steps = list(global_steps(folder, epoch, reading.nodes))
    samples = np.concatenate(steps)
    digest = hashlib.sha256(b"".join(step.astype("<i8").tobytes() for step in steps)).hexdigest()[:12]
    return EpochResult(time_s, len(samples), len(np.unique(samples)), int(sent_bytes), int(requests), digest)


def global_steps(folder: Path, epoch: int, nodes: int) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the samples of each step `(samples,)`, in the order of the ranks."""
    shares = [list(np.load(folder / f"{rank}-{epoch}.npz").values()) for rank in range(nodes)]
    for step in range(max(map(len, shares))):
        yield np.concatenate([share[step] for share in shares if step < len(share)])
