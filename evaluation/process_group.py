"""Share the volumes of a split over the processes of a job, and gather their measurements."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import gather_object

from upfield.common.progress import ProgressBar, say
from upfield.evaluation.measure import MeasuredVolume, MeasurementSettings, measure_listed
from upfield.evaluation.measurements import SplitMeasurements, VolumeFailure, VolumeImages, VolumeMeasurements
from upfield.sharding.shardset.shard_split import ShardSplit
from upfield.sharding.shardset.volume_pairs import VolumePair, group_volumes

# All processes wait for the slowest one, which may take hours on a CPU.
TIMEOUT = timedelta(hours=24)


def current_rank() -> int:
    """Return the rank of this process in the job; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes in the job; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def measure_split(
    settings: MeasurementSettings, split: ShardSplit, use: Callable[[VolumeImages], None] = lambda _: None
) -> SplitMeasurements:
    """Measure every volume of a split once, over all processes. Collective: ALL ranks call it.

    Args:
        settings: the methods to measure, the batch size, and the device.
        split: the split to measure on.
        use: function that receives the images of each volume that this process measures, before they are discarded.

    Returns:
        The measurements of all volumes, on every rank. The main process also gets the images of one volume, which is a
        real one if the split has any. A volume that cannot be measured is printed and counted as a failure.
    """
    rank = 0
    if world_size() > 1:
        state = PartialState(cpu=settings.device.type == "cpu", timeout=TIMEOUT)
        rank = state.process_index
    own = sort_real_first(group_volumes(split))[rank :: world_size()]
    measured: list[VolumeMeasurements] = []
    failures: list[VolumeFailure] = []
    shown: VolumeImages | None = None
    for outcome in measure_volumes(settings, split, own, visible=rank == 0):
        for failure in outcome.failures:
            say(f"{failure.volume}: {failure.method}: {failure.reason}")
        failures += outcome.failures
        if outcome.figures is None or outcome.images is None:
            continue
        measured.append(outcome.figures)
        use(outcome.images)
        if rank == 0 and shown is None:
            shown = outcome.images
    if world_size() > 1:
        measured, failures = gather_object(measured), gather_object(failures)
    volumes = tuple(sorted(measured, key=lambda volume: volume.keys[0]))
    return SplitMeasurements(volumes, shown, tuple(sorted(failures, key=lambda failure: failure.volume)))


def measure_volumes(
    settings: MeasurementSettings, split: ShardSplit, pairs: list[VolumePair], visible: bool
) -> Iterator[MeasuredVolume]:
    """Measure one volume after the other, and yield the outcome of each. A failure does not stop the others.

    Args:
        settings: the methods to measure, the batch size, and the device.
        split: the split that holds the volumes.
        pairs: the volumes to measure.
        visible: whether to show how many slices are measured. Other processes measure as many.
    """
    with ProgressBar("slices", sum(len(listed.samples) for listed in pairs), visible=visible) as bar:
        for listed in pairs:
            count = SliceCount(bar, len(listed.samples), max(settings.passes, 1))
            yield measure_listed(replace(settings, advance=count.add), split, listed)
            count.finish()


class SliceCount:
    """Counts the measured slices of a volume, each of which is restored several times."""

    def __init__(self, bar: ProgressBar, slices: int, passes: int) -> None:
        """Begin a volume.

        Args:
            bar: bar that shows the slices.
            slices: number of slices of the volume.
            passes: number of times that each slice is restored.
        """
        self._bar, self._slices, self._passes = bar, slices, passes
        self._restored, self._shown = 0, 0

    def add(self, restored: int) -> None:
        """Count restored slices."""
        self._restored += restored
        # If a method fails, the volume is measured again.
        self._show(min(self._restored // self._passes, self._slices))

    def finish(self) -> None:
        """Count all slices of the volume."""
        self._show(self._slices)

    def _show(self, done: int) -> None:
        if done > self._shown:
            self._bar.advance(done - self._shown)
            self._shown = done


def sort_real_first(pairs: list[VolumePair]) -> list[VolumePair]:
    """Sort pairs of volumes so that real ones come first, because the report shows the first one."""
    return sorted(pairs, key=lambda pair: pair.first.kind != "real")


def leave_group() -> None:
    """Leave the process group, if there is one. Collective: ALL ranks call it."""
    if world_size() > 1:
        PartialState().destroy_process_group()
