"""The service under load, on this machine alone: nothing lost, nothing different, and what it costs.

A random `tiny` network is exported, and small scans of noise on two grids are made, and some more on one grid;
`upfield enhance` tells what the answers must be. Then the real command is started with one replica, and clients in
threads send scans over loopback.

Throughput is told as the ratio of times for the same scans, taken in turn within one run: `upfield enhance` called once
for each scan and once for all, both in this process, against the service at the given concurrency: the median of
all repeats, beside the best rate. Scans share the batches in which the last strips of each have room left, and only
those on the same grid; `batches` tells how many did. Under `killed` the replica gets SIGKILL when a third of the scans
are answered.
Memory is the resident set of the processes after every hundred requests with smaller scans.
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

from upfield.common.cores import processor_name
from upfield.export.enhance import main as enhance
from upfield.export.modelfile.card import write_card
from upfield.export.modelfile.graph import build_graph, write_model
from upfield.imaging.normalisation import NORMALISATION
from upfield.model.amir import Amir, AmirConfig

SCRIPT = Path(__file__).parents[1] / "export/serve.py"
# 38 and 35 slices of 46 x 40 and 50 x 35: no multiples of a batch, so that batches have room for other scans' slices.
SHAPES, SPACING_MM = ((24, 29, 8), (22, 31, 7)), (1.6, 1.6, 5.0)
# 19 and 18 slices of 22 x 30 and 21 x 30.
SMALL_SHAPES = ((12, 14, 6), (11, 13, 6))
START_S, REQUEST_S, REPLACED_S = 300, 300, 120
ANSWERED = 'upfield_requests_total{method="POST",path="/enhance",status="200"}'


def main() -> None:
    """Print one table."""
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
        with started(model) as (port, process):
            load = Load(port, scans, expected, arguments.concurrency)
            compare(load, model, folder, arguments.repeats)
            kill_replica(load, process)
            on_one_grid(Load(port, alike, alike_expected, arguments.concurrency))
            load = Load(port, small, small_expected, arguments.concurrency)
            watch_memory(load, process, arguments.memory_requests)


def make_model(path: Path) -> Path:
    """Export a random `tiny` network."""
    torch.manual_seed(0)
    network = Amir(AmirConfig.preset("tiny")).eval()
    graph = build_graph(network, half=False)
    card = {"config": {}, "context": 0, "normalisation": NORMALISATION, "data_sha256": "", "step": 0}
    write_card(graph, card | {"model": network.config.to_tree()})
    with write_model(graph, path):
        return path


def make_scans(folder: Path, count: int, shapes: Sequence[tuple[int, int, int]]) -> list[Path]:
    """Write scans of noise."""
    folder.mkdir()
    paths = [folder / f"scan{number:03d}.nii.gz" for number in range(count)]
    for number, path in enumerate(paths):
        voxels = np.random.default_rng(number).random(shapes[number % len(shapes)], np.float32)
        nib.Nifti1Image(voxels, np.diag((*SPACING_MM, 1))).to_filename(path)
    return paths


def enhanced_in_one_call(model: Path, scans: list[Path], out: Path) -> list[bytes]:
    """Return what `upfield enhance` writes for scans if it is called once for all."""
    quietly([str(model), *map(str, scans), "--out", str(out)])
    return [(out / scan.name).read_bytes() for scan in scans]


def enhanced_one_by_one(model: Path, scans: list[Path], out: Path) -> list[bytes]:
    """Return what `upfield enhance` writes for scans if it is called once for each."""
    for scan in scans:
        quietly([str(model), str(scan), "--out", str(out)])
    return [(out / scan.name).read_bytes() for scan in scans]


def quietly(arguments: list[str]) -> None:
    """Enhance without a word."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = enhance(arguments)
    assert code == 0, said.getvalue()


@contextlib.contextmanager
def started(model: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start the service on a free port."""
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
    """Clients that send scans and compare what comes back."""

    def __init__(self, port: int, scans: list[Path], expected: list[bytes], concurrency: int) -> None:
        """Set what to send where, and how many at the same time."""
        self.port = port
        self.bodies = [scan.read_bytes() for scan in scans]
        self.expected = expected
        self.concurrency = concurrency
        self.outcomes: Counter[str] = Counter()

    def run(self, count: int | None = None) -> float:
        """Send as many scans, all of them once by default, and give the seconds it took."""
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
        """Send one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_S)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()

    def metric(self, name: str) -> float:
        """Return the value of a counter."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def batches(self) -> np.ndarray:
        """Return the numbers of batches, of slices in them and of scans in them, summed over all batches so far."""
        names = ("upfield_batch_slices_count", "upfield_batch_slices_sum", "upfield_batch_scans_sum")
        return np.array([self.metric(name) for name in names])


def compare(load: Load, model: Path, folder: Path, repeats: int) -> None:
    """Print times and what became of the answers."""
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
        ratio = np.median([one / other for one, other in zip(times, seconds["service"], strict=True)])
        print(f"{name:<28}{len(scans) / min(times):>7.2f} {ratio:>16.2f}")
    print(f"answers: {told(total)} of {sum(total.values())}")
    print_batches(load.batches())


def print_batches(counts: np.ndarray) -> None:
    """Print what batches were made of: `counts` `(3,)`, as `Load.batches` gives them."""
    batches, slices, scans = counts
    print(f"batches: {slices / batches:.2f} of 4 places used, slices of {scans / batches:.2f} scans in each")


def on_one_grid(load: Load) -> None:
    """Print what batches are made of when all scans have the same grid."""
    before = load.batches()
    seconds = load.run()
    print(f"\none grid: {told(load.outcomes)} of {sum(load.outcomes.values())} in {seconds:.1f} s")
    print_batches(load.batches() - before)


def kill_replica(load: Load, process: psutil.Process) -> None:
    """Kill the replica in the middle, and print what became of the answers."""
    (replica,) = replicas(process)
    wanted = load.metric(ANSWERED) + len(load.bodies) / 3

    def kill() -> None:
        wait_for(lambda: load.metric(ANSWERED) >= wanted, REQUEST_S)
        replica.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    seconds = load.run()
    killer.join()
    print(f"\nkilled: {told(load.outcomes)} of {sum(load.outcomes.values())} in {seconds:.1f} s", end="; ")
    wait_for(lambda: load.ask("/ready")[0] == 200, REPLACED_S)
    (new,) = replicas(process)
    assert new.pid != replica.pid
    print("replaced, ready")


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until `holds` gives True."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not hold within {seconds} s"
        time.sleep(0.05)


def watch_memory(load: Load, process: psutil.Process, requests: int) -> None:
    """Print the resident memory of the service and its replica after every hundred requests."""
    print(f"\n{'requests':<10}{'replica (MB)':>14}{'service (MB)':>14}")
    (replica,) = replicas(process)
    for done in range(100, requests + 100, 100):
        load.run(100)
        assert load.outcomes == {"equal": 100}, load.outcomes
        sizes = [watched.memory_info().rss / 1e6 for watched in (replica, process)]
        print(f"{done:<10}{sizes[0]:>14.1f}{sizes[1]:>14.1f}", flush=True)


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that restore slices; Ray sets their names."""
    return [child for child in process.children(recursive=True) if "ServeReplica" in " ".join(child.cmdline())]


def told(outcomes: Counter[str]) -> str:
    """Put counts into words."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


if __name__ == "__main__":
    main()
