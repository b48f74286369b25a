"""Doubts about the volumes of subjects that only their voxels show, in the form in which the build reports them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation

from upfield.imaging.air import Air
from upfield.imaging.plausibility.foreign_slices import find_foreign_slices, foreign_slices_doubt
from upfield.imaging.plausibility.labels import label_doubt
from upfield.imaging.plausibility.resolution import interpolated_doubt
from upfield.imaging.volume import Volume
from upfield.sharding.cohorts.problems import Field, Problem
from upfield.sharding.cohorts.subjects import Source, SourceVolume, Subject
from upfield.sharding.configuration import GeometryConfig

Stripped = Mapping[str, Any]
"""Which volumes of a subject are skull-stripped: cohort, subject, and `high` and perhaps `low`, each a bool."""


def find_doubts(
    subject: Subject[SourceVolume], volumes: Mapping[Field, Volume], airs: Mapping[Field, Air], geometry: GeometryConfig
) -> list[Problem]:
    """Find doubts about each of a subject's volumes.

    Args:
        subject: the subject.
        volumes: its volumes as they were read, RAS+.
        airs: the background of each volume.
        geometry: the grids of the set.

    Returns:
        The doubts, sorted. They are recorded with the block, so that a build that is resumed keeps them.
    """
    return sorted(
        Problem(subject.cohort, subject.name, field, check, file, f"{message}.")
        for field, source in subject.volumes
        for check, file, message in [
            *(
                (check, str(source), message)
                for check, message in _doubts(field, volumes[field], airs[field], geometry)
            ),
            *_foreign_slices(source, volumes[field]),
        ]
    )


def _doubts(field: Field, volume: Volume, air: Air, geometry: GeometryConfig) -> Iterator[tuple[str, str]]:
    """Yield the check, one of `DOUBTS`, and the sentence of each doubt about one volume."""
    messages = {"labels": label_doubt(volume.voxels), "air": air.doubt}
    if field == "high":
        messages["resolution"] = interpolated_doubt(volume, np.array(geometry.high_spacing_mm))
    yield from ((check, message) for check, message in messages.items() if message)


def _foreign_slices(source: SourceVolume, volume: Volume) -> Iterator[tuple[str, str, str]]:
    """Yield the check, the file and the message of a doubt about slices that do not seem to belong to a stack."""
    stacked_axis = source.header.stacked_axis
    if stacked_axis is None:
        return
    axis, direction = io_orientation(source.header.affine)[stacked_axis]
    num_slices = len(source.paths)
    indices = find_foreign_slices(volume.voxels, int(axis))
    if foreign := sorted(indices if direction > 0 else [num_slices - 1 - index for index in indices]):
        yield "slice", str(source.paths[foreign[0]]), foreign_slices_doubt(foreign, num_slices)


def unlike_brains(stripped: Iterable[Stripped], subjects: Sequence[Subject[Source]]) -> list[Problem]:
    """Report skull-stripped brains beside whole heads, in one pair or in one cohort.

    Args:
        stripped: one entry per subject.
        subjects: the subjects.

    Returns:
        The doubts. In a cohort, they concern the smaller group, or the brains if the groups are equal.
    """
    trees = {(tree["cohort"], tree["subject"]): tree for tree in stripped}
    counts = Counter((cohort, tree["high"]) for (cohort, _), tree in trees.items())
    problems: list[Problem] = []
    for subject in subjects:
        if (tree := trees.get((subject.cohort, subject.id))) is None:
            continue
        (main, _), sources, is_brain = subject.main, dict(subject.volumes), tree["high"]
        same, others = counts[subject.cohort, is_brain], counts[subject.cohort, not is_brain]
        if tree.get("low", is_brain) != is_brain:
            field: Field = main if is_brain else "low"
            other = "low" if is_brain else "high"
            message = (
                f"this is a brain without skull, but the {other} field shows the whole head. Use two scans with the "
                "skull, or two without."
            )
        elif same < others or (same == others and is_brain):
            field = main
            this, that = ("a brain without skull", "whole heads") if is_brain else ("a whole head", "brains only")
            message = f"this is {this}, but {others} scans of this cohort show {that}. Strip all of them or none."
        else:
            continue
        problems.append(Problem(subject.cohort, subject.name, field, "head", str(sources[field]), message))
    return problems


def summarise_stripped(stripped: Iterable[Stripped]) -> dict[str, str]:
    """Return whether `all`, `some` or `none` of the volumes of each cohort are skull-stripped."""
    found: dict[str, set[bool]] = {}
    for tree in stripped:
        found.setdefault(tree["cohort"], set()).update(tree[field] for field in ("low", "high") if field in tree)
    return {
        cohort: "some" if len(found[cohort]) > 1 else "all" if True in found[cohort] else "none"
        for cohort in sorted(found)
    }
