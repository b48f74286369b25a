"""Compare the two clients of remote stores, obstore and fsspec, on the same server.

nginx serves shards of 90 MB from memory on loopback, as files of a web server and, at the same paths, as objects of S3:
it answers signed requests like any others. Each client downloads whole shards into files in memory, 1, 4 or 16 at a
time, and parts of shards of the size of one sample, 1, 16 or 64 requests at a time. Each measurement runs in its own
process, and counts the time, the processor time of the client (not of the server), and how far its memory grows. Each
round measures both clients in turn, so that a noisy machine disturbs both alike, and the best round counts.

Needs nginx (`apt-get install nginx-light`) and s3fs. A shard is not held in memory: while whole shards are downloaded,
the memory may grow by a fifth of the shards in flight at most. Ranges are held until all of one shard have arrived.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from upfield.common.cores import processor_name
from upfield.common.stores import fsspec_client, obstore_client
from upfield.common.stores.byte_ranges import RangeRequest
from upfield.common.stores.fsspec_client import FsspecClient
from upfield.common.stores.obstore_client import ObstoreClient
from upfield.common.stores.transfer import Transfer

NUM_SHARDS, SHARD_BYTES = 4, 90_000_000
SHARDS_READ = 16
# One sample of 2 x 221 x 200 float16 with its headers; the distance keeps requests from being neighbours.
RANGE_BYTES, RANGE_DISTANCE = 177_152, 400_000
SHARDS_WITH_RANGES = 8
CASES = [("shards", in_flight) for in_flight in (1, 4, 16)] + [("ranges", in_flight) for in_flight in (1, 16, 64)]
CLIENTS = ("obstore", "fsspec")
STALL_S = 60.0
MOST_HELD = 0.2
CONFIG = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{ listen 127.0.0.1:{port}; root {folder}/files; }}
}}
"""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Write the shards, serve them, and yield the server's URL."""
    shards = folder / "files/bucket/set"
    shards.mkdir(parents=True)
    for number in range(NUM_SHARDS):
        (shards / f"{number}.tar").write_bytes(os.urandom(SHARD_BYTES))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port))
    # Its workers change the user, who must be able to read the files.
    folder.chmod(0o755)
    server = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure(client_name: str, address: str, kind: str, in_flight: int, folder: Path) -> dict[str, float]:
    """Download with one client. Return megabytes per second, processor seconds per gigabyte and growth in megabytes."""
    client = ObstoreClient(address, STALL_S) if client_name == "obstore" else FsspecClient(address)
    client.fetch_ranges("0.tar", [RangeRequest(0, 10, [0])], Transfer(STALL_S))
    before_kb = peak_kb()
    cpu_s, time_s = time.process_time(), time.monotonic()
    num_bytes = read_shards(client, in_flight, folder) if kind == "shards" else read_ranges(client, in_flight)
    time_s, cpu_s = time.monotonic() - time_s, time.process_time() - cpu_s
    growth_kb = peak_kb() - before_kb
    return {"speed": num_bytes / time_s / 1e6, "cpu": cpu_s / num_bytes * 1e9, "memory": growth_kb * 1024 / 1e6}


def peak_kb() -> int:
    """Return the most memory that this process has used, in kB. `getrusage` would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def read_shards(client: ObstoreClient | FsspecClient, in_flight: int, folder: Path) -> int:
    """Download whole shards, `in_flight` at a time. Return the number of bytes."""

    def read(number: int) -> int:
        path = folder / f"copy-{number}"
        client.fetch(f"{number % NUM_SHARDS}.tar", path, Transfer(STALL_S))
        size = path.stat().st_size
        path.unlink()
        return size

    with ThreadPoolExecutor(in_flight) as pool:
        return sum(pool.map(read, range(SHARDS_READ)))


def read_ranges(client: ObstoreClient | FsspecClient, in_flight: int) -> int:
    """Download parts of shards, `in_flight` requests at a time. Return the number of bytes."""
    obstore_client.REQUESTS_AT_ONCE = fsspec_client.REQUESTS_AT_ONCE = in_flight
    starts = range(0, SHARD_BYTES - RANGE_BYTES, RANGE_DISTANCE)
    requests = [RangeRequest(start, start + RANGE_BYTES, [0]) for start in starts]
    num_bytes = 0
    for number in range(SHARDS_WITH_RANGES):
        answers = client.fetch_ranges(f"{number % NUM_SHARDS}.tar", requests, Transfer(STALL_S))
        num_bytes += sum(len(answer) for answer in answers)
    return num_bytes


def measure_apart(client: str, url: str, scheme: str, kind: str, in_flight: int, folder: Path) -> dict[str, float]:
    """Run `measure` in another process, which finds the server as users' processes do."""
    address = f"{url}/bucket/set" if scheme == "http" else "s3://bucket/set"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    variables |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    variables |= {"AWS_ENDPOINT_URL": url, "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    command = [sys.executable, __file__, "--measure", client, address, kind, str(in_flight), str(folder)]
    return json.loads(subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True).stdout)


def run(rounds: int, folder: Path) -> None:
    """Measure every case, and print the table."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("obstore", "s3fs", "aiohttp"))
    print(
        f"{processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}\n{versions}, {nginx_version()}"
    )
    print(f"shards of {SHARD_BYTES / 1e6:.0f} MB, ranges of {RANGE_BYTES / 1e3:.0f} kB, best of {rounds} rounds\n")
    print(f"{'':24}{'MB/s':>24}{'':8}{'CPU s per GB':>20}{'memory grows by MB':>22}")
    print(f"{'':24}{'obstore':>12}{'fsspec':>12}{'ratio':>8}" + f"{'obstore':>11}{'fsspec':>11}" * 2)
    least, growth = float("inf"), 0.0
    with serve(folder) as url:
        for scheme in ("http", "s3"):
            for kind, in_flight in CASES:
                results = {client: [] for client in CLIENTS}
                for _ in range(rounds):
                    for client in CLIENTS:
                        results[client].append(measure_apart(client, url, scheme, kind, in_flight, folder))
                best = {client: max(results[client], key=lambda result: result["speed"]) for client in CLIENTS}
                ours, theirs = best["obstore"], best["fsspec"]
                least = min(least, ours["speed"] / theirs["speed"])
                if kind == "shards":
                    most = max(result["memory"] for result in results["obstore"])
                    growth = max(growth, most * 1e6 / SHARD_BYTES / in_flight)
                print(
                    f"{scheme:5} {in_flight:2} {kind} at once".ljust(24)
                    + f"{ours['speed']:12,.0f}{theirs['speed']:12,.0f}{ours['speed'] / theirs['speed']:8.1f}"
                    + f"{ours['cpu']:11.2f}{theirs['cpu']:11.2f}{ours['memory']:11,.0f}{theirs['memory']:11,.0f}",
                    flush=True,
                )
    print(f"\nobstore is always faster than fsspec: {'held' if least > 1 else 'MISSED'}, {least:.2f} times where least")
    verdict = "held" if growth < MOST_HELD else "MISSED"
    print(f"obstore holds less than {MOST_HELD} of the shards in flight: {verdict}, {growth:.2f} where most")


def nginx_version() -> str:
    """Return the name and version of the server."""
    said = subprocess.run(["nginx", "-v"], stderr=subprocess.PIPE, text=True, check=True).stderr
    return said.rpartition(": ")[2].strip()


def main() -> None:
    """Run the benchmark, or one measurement of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a folder in memory")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        client, address, kind, in_flight, folder = arguments.measure
        print(json.dumps(measure(client, address, kind, int(in_flight), Path(folder))))
        return
    if shutil.which("nginx") is None:
        sys.exit("nginx is missing. Run apt-get install nginx-light.")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
