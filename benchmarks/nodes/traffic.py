"""The table of bytes: what 1, 2, 4 and 8 nodes download, and whether they read the same samples."""

from dataclasses import dataclass, replace

from reader import OURS

from nodes.measurements import Measurements, NodesResult
from nodes.readers import Reading
from nodes.servers import BUCKET

NODES = (1, 2, 4, 8)
# Full batches, in as many shards as 1,000 subjects have by default. The length of a group is not a
# multiple of the length of a shard, so groups cut shards.
SAMPLES, SAMPLES_PER_SHARD = 1728, 5
LEAST, MOST = 1.0, 1.05
# The end of a tar belongs to no sample, so single samples are a little less than the set.
ROUNDING = 0.01
SPARE = 1.1
INDEX_BYTES = 10**6


@dataclass(frozen=True)
class Way:
    """A way to read a set."""

    name: str
    """Name in the table."""
    fetch: str
    """Value of `data.fetch`."""
    cache: str
    """What a node's cache holds: its `part` of the set, the `least` that upfield accepts, or the `index` alone."""


WAYS = (
    Way("fetch: shards, the cache holds the node's part and a tenth more", "shards", "part"),
    Way("fetch: shards, the least cache that is accepted", "shards", "least"),
    Way("fetch: samples, a cache of 1 MB for the index", "samples", "index"),
)


def measure_traffic(measurements: Measurements) -> None:
    """Print the table, over HTTP and S3."""
    servers = measurements.servers
    measurements.write(OURS, OURS, SAMPLES, SAMPLES_PER_SHARD)
    folder = servers.root / BUCKET / OURS
    servers.upload(folder, OURS)
    tars = [path.stat().st_size for path in folder.glob("train/*.tar")]
    size = sum(tars)
    print(f"\n{SAMPLES} samples in {len(tars)} shards, {size / 1e6:.0f} MB, global batch {Reading.batch_size}")
    places = {
        "HTTP, nginx": (f"{servers.http}/{BUCKET}/{OURS}", ""),
        servers.s3_name: (f"s3://{BUCKET}/{OURS}", servers.s3),
    }
    results: dict[str, NodesResult] = {}
    for place, (address, endpoint) in places.items():
        for way in WAYS:
            print(f"\n{place}; {way.name}")
            print("nodes     downloaded / set           requests          samples/s   fullest cache")
            print("             first  second      first  second      first  second           / set")
            for nodes in NODES:
                reading = Reading(OURS, nodes, address, endpoint, fetch=way.fetch, one_by_one=True)
                result = measurements.read(replace(reading, cache_bytes=cache_bytes(way, size, nodes)))
                results[f"{place}, {way.name}, {nodes} nodes"] = result
                print(format_row(nodes, result, size), flush=True)
    print_verdict([result for result in results.values() if result.epochs], len(results), size)


def cache_bytes(way: Way, size: int, nodes: int) -> int:
    """Return the limit of a node's cache in bytes; 0 stands for the least that upfield accepts."""
    return {"part": int(SPARE * size / nodes), "least": 0, "index": INDEX_BYTES}[way.cache]


def format_row(nodes: int, result: NodesResult, size: int) -> str:
    """Return a line of the table."""
    if result.failure:
        return f"{nodes:>5}   not measured: {result.failure}"
    columns = [
        "".join(f"{epoch.sent_bytes / size:>8.3f}" for epoch in result.epochs),
        "".join(f"{epoch.requests:>8,}" for epoch in result.epochs),
        "".join(f"{epoch.rate:>8,.0f}" for epoch in result.epochs),
    ]
    return f"{nodes:>5}   " + "   ".join(columns) + f"{result.cache_bytes / size:>16.3f}"


def print_verdict(measured: list[NodesResult], expected: int, size: int) -> None:
    """Print whether all runs read the same samples, and whether they downloaded the set once in the first epoch."""
    if len(measured) < expected:
        print(f"\n{expected - len(measured)} of {expected} runs were not measured")
    traces = {tuple(epoch.trace for epoch in result.epochs) for result in measured}
    same = "held" if len(traces) == 1 else f"MISSED, {len(traces)} different traces"
    print(f"\nthe same samples at each step, in the same order, in all {len(measured)} runs: {same}")
    ratios = [result.epochs[0].sent_bytes / size for result in measured]
    held = min(ratios) >= LEAST - ROUNDING and max(ratios) <= MOST
    print(
        f"{LEAST:.2f} to {MOST:.2f} times the set in the first epoch: {'held' if held else 'MISSED'}, "
        f"{min(ratios):.3f} to {max(ratios):.3f}"
    )
