"""Doubts about the volumes of a subject that only their voxels show, in the form in which the build reports them."""

from collections.abc import Iterator

from nibabel.orientations import io_orientation

from upfield.imaging.air import estimate_air
from upfield.imaging.plausibility.foreign_slices import find_foreign_slices, foreign_slices_doubt
from upfield.imaging.plausibility.labels import label_doubt
from upfield.imaging.volume import Volume
from upfield.sharding.cohorts.problems import Field, Problem
from upfield.sharding.cohorts.subjects import SourceVolume, Subject


def find_doubts(subject: Subject[SourceVolume], low: Volume | None, high: Volume) -> list[Problem]:
    """Find doubts about a subject's volumes as they were read.

    Args:
        subject: the subject.
        low: its low field, RAS+; None if it has none.
        high: its high field, RAS+.

    Returns:
        The doubts, sorted. They are recorded with the block, so that a build that is resumed keeps them.
    """
    volumes: dict[Field, Volume | None] = {"high": high, "low": low}
    return sorted(
        Problem(subject.cohort, subject.name, field, check, file, message)
        for field, source in subject.volumes
        if (volume := volumes[field]) is not None
        for check, file, message in [
            *((check, str(source), message) for check, message in _doubts(field, volume)),
            *_foreign_slices(source, volume),
        ]
    )


def _doubts(field: Field, volume: Volume) -> Iterator[tuple[str, str]]:
    """Yield the check and the message of each doubt about one volume. Each check is one of `DOUBTS`."""
    messages = {"labels": label_doubt(volume.voxels), "air": estimate_air(volume.voxels).doubt}
    yield from ((check, f"{message}.") for check, message in messages.items() if message)


def _foreign_slices(source: SourceVolume, volume: Volume) -> Iterator[tuple[str, str, str]]:
    """Yield the check, the file and the message of a doubt about slices that do not seem to belong to a stack."""
    stacked_axis = source.header.stacked_axis
    if stacked_axis is None:
        return
    axis, direction = io_orientation(source.header.affine)[stacked_axis]
    num_slices = len(source.paths)
    indices = find_foreign_slices(volume.voxels, int(axis))
    if foreign := sorted(indices if direction > 0 else [num_slices - 1 - index for index in indices]):
        yield "slice", str(source.paths[foreign[0]]), f"{foreign_slices_doubt(foreign, num_slices)}."
