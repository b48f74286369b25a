"""The table of speed: upfield, MosaicML Streaming and LitData on the same store."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reader import OURS

from nodes.measurements import SAMPLE_BYTES, Measurements, NodesResult
from nodes.readers import LITDATA, MOSAICML, Reading
from nodes.servers import BUCKET

NODES = (1, 2)
EPOCHS = ("first", "second")
SAMPLES_PER_SHARD = 128
FOLDERS = {OURS: OURS, MOSAICML: "mosaicml", LITDATA: "litdata"}
# Settings beside the defaults, and numbers of workers. The documentation of MosaicML Streaming advises a larger
# `predownload`. Its default shuffle, `py1e`, downloads each shard on one node. LitData chooses by itself how much it
# downloads ahead, and never less than `max_pre_download`.
TUNINGS = {
    OURS: (("", 0), ("", 2)),
    MOSAICML: (("", 0), ("", 2), ("predownload=2**20", 0), ("predownload=2**20", 2)),
    LITDATA: (("", 0), ("", 2), ("max_pre_download=8", 0)),
}


@dataclass(frozen=True)
class Setting:
    """A library, its settings, and the number of nodes."""

    reader: str
    """Name of the library."""
    tuning: str
    """Settings beside the defaults."""
    nodes: int
    """Number of nodes."""
    workers: int
    """Number of workers on each node."""


def measure_speed(
    measurements: Measurements, readers: Sequence[str], numbers_of_nodes: Sequence[int], samples: int, rounds: int
) -> None:
    """Print the speed of the libraries, and the bytes that they download."""
    refused = {name: measurements.write(FOLDERS[name], FOLDERS[name], samples, SAMPLES_PER_SHARD) for name in readers}
    size = f"{samples * SAMPLE_BYTES / 1e6:.0f} MB"
    print(f"\n{samples} samples, {size}, global batch {Reading.batch_size}, best of {rounds} rounds")
    for name, reason in refused.items():
        if reason:
            print(f"{name}: not measured: {reason}")
    for nodes in numbers_of_nodes:
        settings = [
            Setting(name, tuning, nodes, workers)
            for name in readers
            for tuning, workers in TUNINGS[name]
            if not refused[name]
        ]
        results: defaultdict[Setting, list[NodesResult]] = defaultdict(list)
        # In each round, noise disturbs all of them alike.
        for _ in range(rounds):
            for setting in settings:
                results[setting].append(measurements.read(reading_of(measurements, setting)))
        title = f"{nodes} nodes" if nodes > 1 else "1 node"
        print(f"\n{title:<38}   workers       samples/s   downloaded / set   read twice")
        print(f"{'':<38}               first  second      first  second       second")
        for setting in settings:
            print(format_row(setting, results[setting], samples))
        for number in range(len(EPOCHS)):
            print_targets(results, number)
        sys.stdout.flush()


def reading_of(measurements: Measurements, setting: Setting) -> Reading:
    """Return how the nodes read."""
    address, endpoint = f"s3://{BUCKET}/{FOLDERS[setting.reader]}", measurements.servers.http
    return Reading(setting.reader, setting.nodes, address, endpoint, workers=setting.workers, tuning=setting.tuning)


def best_rates(results: Sequence[NodesResult]) -> list[float]:
    """Return the best rate of each epoch over all rounds; empty if no round was measured."""
    measured = [result.epochs for result in results if result.epochs]
    return [max(epochs[number].rate for epochs in measured) for number in range(len(EPOCHS))] if measured else []


def format_row(setting: Setting, results: Sequence[NodesResult], samples: int) -> str:
    """Return a line of the table."""
    title = f"{setting.reader}, {setting.tuning}" if setting.tuning else setting.reader
    start = f"{title:<38}{setting.workers:>10}"
    measured = [result for result in results if result.epochs]
    if not measured:
        return f"{start}   not measured: {results[0].failure}"
    epochs = measured[-1].epochs
    twice = epochs[-1].samples - epochs[-1].different
    return (
        start
        + "".join(f"{rate:>8,.0f}" for rate in best_rates(results))
        + "   "
        + "".join(f"{epoch.sent_bytes / (samples * SAMPLE_BYTES):>8.3f}" for epoch in epochs)
        + f"{twice:>13,}"
    )


def print_targets(results: dict[Setting, list[NodesResult]], epoch: int) -> None:
    """Print whether upfield is ahead of each other library in one epoch, with the best settings of both."""
    best: dict[str, float] = {}
    for setting, rounds in results.items():
        if rates := best_rates(rounds):
            best[setting.reader] = max(best.get(setting.reader, 0.0), rates[epoch])
    if (ours := best.pop(OURS, 0.0)) == 0.0:
        return
    for name, rate in best.items():
        verdict = "held" if ours > rate else "MISSED"
        print(f"{EPOCHS[epoch]} epoch: ahead of {name}: {verdict}, {ours / rate:.2f} times as fast")
