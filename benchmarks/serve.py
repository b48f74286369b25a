"""Load-test the service on this machine: check that no answer is lost or wrong, and measure speed and memory.

The benchmark exports a `tiny` network with random weights, and makes small scans of noise on two grids and some more on
one grid. `upfield enhance` computes the expected answers. Then `upfield serve` is started with one replica, and client
threads send scans over loopback.

The throughput of the service is compared with `upfield enhance` on the same scans, called once for each scan and once
for all. Both calls run in this process and take turns with the service, which gets `--concurrency` requests at a time.
The table shows the best rate of each, and the ratio of times as the median of all repeats.

The last strip of a scan leaves room in its batch for slices of other scans, but only of scans on the same grid.
`batches` shows how full the batches are and how many scans share one. Under `killed`, the replica gets SIGKILL when a
third of the scans are answered. Memory is the resident set size after each hundred requests with smaller scans.
"""

import argparse
import contextlib
import http.client
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch

from upfield.common.command import to_tree
from upfield.common.cores import processor_name
from upfield.export.enhance import main as enhance
from upfield.export.modelfile.card import write_card
from upfield.export.modelfile.graph import build_graph, write_model
from upfield.imaging.normalisation import NORMALISATION
from upfield.model.amir import Amir, AmirConfig
from upfield.sharding.configuration import GeometryConfig

SCRIPT = Path(__file__).parents[1] / "export/serve.py"
# 38 slices of 46 x 40 and 35 of 50 x 35: the last batch of a scan has room for slices of other scans.
SHAPES, SPACING_MM = ((24, 29, 8), (22, 31, 7)), (1.6, 1.6, 5.0)
# 19 slices of 22 x 30 and 18 of 21 x 30.
SMALL_SHAPES = ((12, 14, 6), (11, 13, 6))
START_S, REQUEST_S, REPLACED_S = 300, 300, 120
ANSWERED = 'upfield_requests_total{method="POST",path="/enhance",status="200"}'


def main() -> None:
    """Load the service in several ways and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--memory_requests", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "tiny.onnx")
        scans = make_scans(folder / "scans", arguments.requests, SHAPES)
        expected = enhanced_in_one_call(model, scans, folder / "expected")
        alike = make_scans(folder / "alike", 20, SHAPES[:1])
        alike_expected = enhanced_in_one_call(model, alike, folder / "alike_expected")
        small = make_scans(folder / "small", 10, SMALL_SHAPES)
        small_expected = enhanced_in_one_call(model, small, folder / "small_expected")
        print(f"{processor_name()}, {len(os.sched_getaffinity(0))} threads")
        print(f"{len(scans)} scans of 35 or 38 slices, tiny, 1 replica, concurrency {arguments.concurrency}")
        with running_service(model) as (port, process):
            load = Load(port, scans, expected, arguments.concurrency)
            compare(load, model, folder, arguments.repeats)
            kill_replica(load, process)
            on_one_grid(Load(port, alike, alike_expected, arguments.concurrency))
            load = Load(port, small, small_expected, arguments.concurrency)
            watch_memory(load, process, arguments.memory_requests)


def make_model(path: Path) -> Path:
    """Export a `tiny` network with random weights."""
    torch.manual_seed(0)
    network = Amir(AmirConfig.preset("tiny")).eval()
    graph = build_graph(network, half=False)
    card = {"config": {}, "context": 0, "normalisation": NORMALISATION, "data_sha256": "", "step": 0}
    write_card(graph, card | {"geometry": to_tree(GeometryConfig()), "model": network.config.to_tree()})
    with write_model(graph, path):
        return path


def make_scans(folder: Path, count: int, shapes: Sequence[tuple[int, int, int]]) -> list[Path]:
    """Write scans of noise with alternating shapes, and return their paths."""
    folder.mkdir()
    paths = [folder / f"scan{number:03d}.nii.gz" for number in range(count)]
    for number, path in enumerate(paths):
        voxels = np.random.default_rng(number).random(shapes[number % len(shapes)], np.float32)
        nib.Nifti1Image(voxels, np.diag((*SPACING_MM, 1))).to_filename(path)
    return paths


def enhanced_in_one_call(model: Path, scans: list[Path], out: Path) -> list[bytes]:
    """Return the files that one call of `upfield enhance` writes for all scans."""
    quietly([str(model), *map(str, scans), "--out", str(out)])
    return [(out / scan.name).read_bytes() for scan in scans]


def enhanced_one_by_one(model: Path, scans: list[Path], out: Path) -> list[bytes]:
    """Return the files that `upfield enhance` writes if it is called once for each scan."""
    for scan in scans:
        quietly([str(model), str(scan), "--out", str(out)])
    return [(out / scan.name).read_bytes() for scan in scans]


def quietly(arguments: list[str]) -> None:
    """Run `upfield enhance`, and show its output only if it fails."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = enhance(arguments)
    assert code == 0, said.getvalue()


@contextlib.contextmanager
def running_service(model: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run the service on a free port, and yield the port and the process."""
    command = [sys.executable, str(SCRIPT), str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + START_S
        while not (ready := re.search(r"http://127\.0\.0\.1:(\d+)/", "".join(said))):
            assert process.poll() is None, "".join(said)
            assert time.monotonic() < deadline, "".join(said)
            time.sleep(0.1)
        yield int(ready[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        code = process.wait(REQUEST_S)
        print(f"ended with {code}")


class Load:
    """Clients that send scans and compare the answers with the expected files."""

    def __init__(self, port: int, scans: list[Path], expected: list[bytes], concurrency: int) -> None:
        """Read the scans to send; `concurrency` requests are sent at the same time."""
        self.port = port
        self.bodies = [scan.read_bytes() for scan in scans]
        self.expected = expected
        self.concurrency = concurrency
        self.outcomes: Counter[str] = Counter()

    def run(self, count: int | None = None) -> float:
        """Send `count` scans, by default each scan once, and return the seconds until the last answer."""
        self.outcomes = Counter()
        began = time.monotonic()
        with ThreadPoolExecutor(self.concurrency) as clients:
            for outcome in clients.map(self._send, range(count or len(self.bodies))):
                self.outcomes[outcome] += 1
        return time.monotonic() - began

    def _send(self, number: int) -> str:
        number %= len(self.bodies)
        try:
            status, body = self.ask("/enhance", self.bodies[number])
        except (OSError, http.client.HTTPException) as error:
            return f"lost ({type(error).__name__})"
        if status == 200:
            return "equal" if body == self.expected[number] else "different"
        return f"refused with {status}"

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send one request and return the status and the body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_S)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()

    def metric(self, name: str) -> float:
        """Return the value of a counter of `/metrics`, 0 if it is not there."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def batches(self) -> np.ndarray:
        """Return `(3,)` totals so far: batches, slices in batches, and scans in batches (counted in each batch)."""
        names = ("upfield_batch_slices_count", "upfield_batch_slices_sum", "upfield_batch_scans_sum")
        return np.array([self.metric(name) for name in names])


def compare(load: Load, model: Path, folder: Path, repeats: int) -> None:
    """Print the speed of each way, and the outcomes of all requests."""
    load.run()
    ways: dict[str, Callable[[list[Path], Path], list[bytes]]] = {
        "enhance, a call for each": lambda scans, out: enhanced_one_by_one(model, scans, out),
        "enhance, one call for all": lambda scans, out: enhanced_in_one_call(model, scans, out),
    }
    scans = sorted((folder / "scans").iterdir())
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "service")}
    total: Counter[str] = Counter()
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.monotonic()
            assert way(scans, folder / "out") == load.expected
            seconds[name].append(time.monotonic() - began)
            shutil.rmtree(folder / "out")
        seconds["service"].append(load.run())
        total += load.outcomes
    print(f"\n{'':<28}scans/s   service / this")
    for name, times in seconds.items():
        ratio = np.median([way_s / service_s for way_s, service_s in zip(times, seconds["service"], strict=True)])
        print(f"{name:<28}{len(scans) / min(times):>7.2f} {ratio:>16.2f}")
    print(f"answers: {describe(total)} of {sum(total.values())}")
    print_batches(load.batches())


def print_batches(counts: np.ndarray) -> None:
    """Print how full batches are, and how many scans share one; `counts` `(3,)` come from `Load.batches`."""
    batches, slices, scans = counts
    print(f"batches: {slices / batches:.2f} of 4 places used, slices of {scans / batches:.2f} scans in each")


def on_one_grid(load: Load) -> None:
    """Send scans that all have the same grid, and print how full their batches are."""
    before = load.batches()
    seconds = load.run()
    print(f"\none grid: {describe(load.outcomes)} of {sum(load.outcomes.values())} in {seconds:.1f} s")
    print_batches(load.batches() - before)


def kill_replica(load: Load, process: psutil.Process) -> None:
    """Kill the replica after a third of the answers, and print the outcomes of all requests."""
    (replica,) = replicas(process)
    wanted = load.metric(ANSWERED) + len(load.bodies) / 3

    def kill() -> None:
        wait_for(lambda: load.metric(ANSWERED) >= wanted, REQUEST_S)
        replica.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    seconds = load.run()
    killer.join()
    print(f"\nkilled: {describe(load.outcomes)} of {sum(load.outcomes.values())} in {seconds:.1f} s", end="; ")
    wait_for(lambda: load.ask("/ready")[0] == 200, REPLACED_S)
    (new,) = replicas(process)
    assert new.pid != replica.pid
    print("replaced, ready")


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until `holds` returns True."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.05)


def watch_memory(load: Load, process: psutil.Process, requests: int) -> None:
    """Print the resident memory of the service and its replica after each hundred requests."""
    print(f"\n{'requests':<10}{'replica (MB)':>14}{'service (MB)':>14}")
    (replica,) = replicas(process)
    for done in range(100, requests + 100, 100):
        load.run(100)
        assert load.outcomes == {"equal": 100}, load.outcomes
        sizes = [watched.memory_info().rss / 1e6 for watched in (replica, process)]
        print(f"{done:<10}{sizes[0]:>14.1f}{sizes[1]:>14.1f}", flush=True)


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the replicas; Ray puts `ServeReplica` into their command lines."""
    return [child for child in process.children(recursive=True) if "ServeReplica" in " ".join(child.cmdline())]


def describe(outcomes: Counter[str]) -> str:
    """Format the number of each outcome."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


if __name__ == "__main__":
    main()
