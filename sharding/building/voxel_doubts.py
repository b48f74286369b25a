"""Doubts about the volumes of a subject that only their voxels show, in the form in which the build reports them."""

from collections.abc import Iterator

from upfield.imaging.air import estimate_air
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
        Problem(subject.cohort, subject.name, field, check, str(source), message)
        for field, source in subject.volumes
        if (volume := volumes[field]) is not None
        for check, message in _doubts(field, volume)
    )


def _doubts(field: Field, volume: Volume) -> Iterator[tuple[str, str]]:
    """Yield the check and the message of each doubt about one volume. Each check is one of `DOUBTS`."""
    messages = {"labels": label_doubt(volume.voxels), "air": estimate_air(volume.voxels).doubt}
    yield from ((check, f"{message}.") for check, message in messages.items() if message)
