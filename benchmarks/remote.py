"""Read one set on 1, 2, 4 and 8 simulated nodes from servers on this machine: bytes, order and speed.

Each node is a process with a cache folder of its own. nginx serves the set over HTTP, and its log says how many bytes
it sends. A real S3 server (s3rver, or moto without `--s3rver`) serves the same set behind nginx, which counts its bytes
too. All nodes and servers share the cores of this machine, so the speed does not grow with the number of nodes.

- `traffic`: what all nodes together download in each epoch, relative to the size of the set, and whether the samples of
  each step are the same for every number of nodes. Here each epoch ends before anything is downloaded for the next one,
  as if the run were resumed. A shard that is cut between two nodes is downloaded by both, so N nodes download at most
  N - 1 shards more than the set has.
- `speed`: samples per second of upfield, MosaicML Streaming and LitData over all nodes. nginx serves all of them as an
  S3 store, because the S3 servers would be the bottleneck. The time of the first epoch includes opening the set and
  starting workers. Each library has the settings that its documentation recommends, and others that may be faster here,
  without workers and with two. The best rate of all settings and rounds counts, for each epoch separately. The caches
  hold the whole set. `read twice` are samples that were read more than once in the second epoch.

Needs nginx (Debian: `apt-get install nginx-light`). For the faster S3 server, run `npm install s3rver@3.7.1` in a
folder, and name the folder with `--s3rver`. Install the other libraries as benchmarks/reader.py says, and name their
folder with `--peers`. Their nodes need a /dev/shm of their own, so more than one node is measured as root only.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from nodes.measurements import Measurements, do_job
from nodes.servers import nginx_program, run_servers
from nodes.speed import NODES, TUNINGS, measure_speed
from nodes.traffic import measure_traffic
from reader import describe

PARTS = ("traffic", "speed")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samples", type=int, default=4096, help="number of samples of `speed`")
    parser.add_argument("--nodes", nargs="+", type=int, default=NODES, help="numbers of nodes of `speed`")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds of `speed`")
    parser.add_argument("--readers", nargs="+", choices=TUNINGS, default=list(TUNINGS), help="libraries of `speed`")
    parser.add_argument("--folder", type=Path, default=None, help="folder for temporary files")
    parser.add_argument("--peers", type=Path, default=None, help="folder with the other libraries")
    parser.add_argument("--s3rver", type=Path, default=None, help="folder with s3rver")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(do_job(json.loads(options.job))))
        # Some threads of the other libraries never end.
        sys.stdout.flush()
        os._exit(0)
    if not nginx_program():
        print("not measured: nginx is missing. Debian has it as nginx-light.")
        return
    print(describe(options.peers))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        caches = Path(name) / "caches"
        caches.mkdir()
        with run_servers(Path(name) / "servers", options.s3rver) as servers:
            measurements = Measurements(servers, Path(__file__), options.peers, caches)
            if "traffic" in options.parts:
                measure_traffic(measurements)
            if "speed" in options.parts:
                measure_speed(measurements, options.readers, options.nodes, options.samples, options.rounds)


if __name__ == "__main__":
    main()
