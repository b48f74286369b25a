"""Runs jobs in processes of their own, against running servers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reader import OURS, SHAPE, WRITERS, draw_noise, draw_sample

from nodes.job import EpochResult, run_nodes
from nodes.readers import Reading
from nodes.servers import BUCKET, Servers

SAMPLE_BYTES = 2 * 2 * int(np.prod(SHAPE))
TIMEOUT_S = 200.0


@dataclass(frozen=True)
class NodesResult:
    """What the nodes of one measurement did."""

    epochs: Sequence[EpochResult] = ()
    """Result of each epoch; empty if the measurement failed."""
    cache_bytes: int = 0
    """Bytes in the fullest cache at the end."""
    failure: str = ""
    """Why the measurement failed."""


class Measurements:
    """Writes sets where the servers find them, and lets nodes read them."""

    def __init__(self, servers: Servers, script: Path, peers: Path | None, folder: Path) -> None:
        """Store the arguments.

        Args:
            servers: running servers.
            script: script that calls `do_job` with the value of its flag `--job`.
            peers: folder in which the other libraries are installed.
            folder: folder for caches.
        """
        self.servers, self._script, self._peers, self._folder = servers, script, peers, folder

    def write(self, name: str, folder: str, samples: int, samples_per_shard: int) -> str:
        """Write a set into a folder of the bucket. Return the reason if this is not possible."""
        place = str(self.servers.root / BUCKET / folder)
        return self._run(do="write", name=name, folder=place, samples=samples, samples_per_shard=samples_per_shard)[1]

    def read(self, reading: Reading) -> NodesResult:
        """Let nodes read into new caches, which are removed at the end."""
        folder = tempfile.mkdtemp(dir=self._folder)
        result, reason = self._run(do="read", reading=asdict(reading), folder=folder, log=str(self.servers.log))
        shutil.rmtree(folder)
        if result is None:
            return NodesResult(failure=reason)
        return NodesResult([EpochResult(**epoch) for epoch in result["epochs"]], result["cache_bytes"])

    def _run(self, **job: Any) -> tuple[Any, str]:
        """Do a job in a child process. Return its result, and the reason if there is none."""
        paths = [os.environ.get("PYTHONPATH", ""), *([str(self._peers.resolve())] if self._peers else [])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore"}
        environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, str(self._script), "--job", json.dumps(job)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=True
            )
        except subprocess.TimeoutExpired:
            return None, f"not finished after {TIMEOUT_S:.0f} s"
        except subprocess.CalledProcessError as error:
            return None, (error.stderr.strip().splitlines() or ["killed"])[-1]
        return json.loads(done.stdout.splitlines()[-1]), ""


def do_job(job: dict[str, Any]) -> Any:
    """Do the job of a child process: write a set, or let nodes read one."""
    folder = Path(job["folder"])
    if job["do"] == "read":
        return run_nodes(Reading(**job["reading"]), folder, Path(job["log"]))
    if job["name"] == OURS:
        return write_shards(folder, job["samples"], job["samples_per_shard"])
    return WRITERS[job["name"]](folder, job["samples"])


def write_shards(folder: Path, num_samples: int, samples_per_shard: int) -> None:
    """Write a shard set with a training split, and a validation split of one sample."""
    from upfield.sharding.building.manifest_writer import Addition, content_config, write_manifest
    from upfield.sharding.configuration import ShardConfig
    from upfield.sharding.shardset.shard_writer import Sample, write_shard

    noise, written = draw_noise(), []
    parts = np.split(np.arange(num_samples), range(samples_per_shard, num_samples, samples_per_shard))
    shards = {f"train/{number:06d}": part for number, part in enumerate(parts)} | {"val/000000": np.arange(1)}
    for name, numbers in shards.items():
        samples = (Sample(f"noise-{n:06d}-real-0-x000", *draw_sample(n, noise), {"slice": 0}) for n in numbers.tolist())
        written.append(write_shard(folder, name, samples))
    write_manifest(folder, content_config(ShardConfig("out")), Addition(subjects=[], shards=written), None)
