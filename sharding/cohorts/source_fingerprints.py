"""Fingerprints of the files that a set was made from, kept in its manifest.

They let a later build find scans that the set already holds under another name, and files that have changed since.
"""

from collections.abc import Sequence

from upfield.common.tasks import run_tasks
from upfield.imaging.compressed_files import DAMAGED
from upfield.imaging.header import files_of, unreadable
from upfield.sharding.cohorts.duplicates import fingerprint
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.problems import Field, Problem, noun_of
from upfield.sharding.cohorts.subjects import SourceVolume, Subject, processes_for
from upfield.sharding.shardset.manifest import Manifest

FIELDS: tuple[Field, ...] = ("high", "low", "labels")
SECRET = (*FIELDS, *(f"{field}_voxels" for field in FIELDS))


def describe_sources(subject: Subject) -> dict[str, str]:
    """Return the cohort and id of a subject, and the fingerprint of each of its volumes by field.

    Compressed files are opened only if the subject's headers have not been read.

    Raises:
        VolumeError: a file is damaged or cannot be read.
        RunError: a file cannot be read, and the cause is the machine and not the file.
    """
    tree = {"cohort": subject.cohort, "subject": subject.id}
    for field, source in subject.volumes:
        try:
            if isinstance(source, SourceVolume) and source.traces:
                tree[field] = fingerprint(source.files, source.traces)
            else:
                tree[field] = fingerprint([file for path in source.paths for file in files_of(path)])
        except DAMAGED as error:
            raise unreadable(source.paths[0], error) from error
    return tree


def describe_all(subjects: Sequence[Subject], jobs: int) -> list[dict[str, str]]:
    """Call `describe_sources` for each subject, and return the results in the same order.

    Several processes are used if there are many files.
    """
    trees = run_tasks(describe_sources, subjects, processes_for(subjects, jobs))
    by_subject = {(tree["cohort"], tree["subject"]): tree for tree in trees}
    return [by_subject[subject.cohort, subject.id] for subject in subjects]


def seal_fingerprints(tree: dict[str, str], pseudonyms: Pseudonyms | None) -> dict[str, str]:
    """Replace the fingerprints in a result of `describe_sources` by keyed hashes, if there are pseudonyms.

    Without a key, anyone who has a scan could compute its fingerprint and so find its pseudonym.
    """
    if pseudonyms is None:
        return tree
    return {key: pseudonyms.seal(value) if key in SECRET else value for key, value in tree.items()}


def find_held_scans(
    subjects: Sequence[Subject], old: Manifest, pseudonyms: Pseudonyms | None, jobs: int
) -> list[Problem]:
    """Find new subjects with a volume that the set already holds under another name or cohort.

    Args:
        subjects: the subjects to be added, without those that have other problems.
        old: manifest of the set.
        pseudonyms: the pseudonyms of the set.
        jobs: number of processes; 0 means one per core.
    """
    held = {tree[field]: tree for tree in old.sources for field in FIELDS if field in tree}
    problems: list[Problem] = []
    for subject, described in zip(subjects, describe_all(subjects, jobs), strict=True):
        tree = seal_fingerprints(described, pseudonyms)
        for field, source in subject.volumes:
            if twin := held.get(tree[field]):
                message = f"the set already holds a {noun_of(field)} with the same content. Leave this one out."
                files = f"{source.paths[0]} = {twin['cohort']} {twin['subject']}, in the set"
                problems.append(Problem(subject.cohort, subject.name, field, "same", files, message))
    return problems


def find_changed_subjects(
    subjects: Sequence[Subject], old: Manifest, pseudonyms: Pseudonyms | None, jobs: int
) -> list[Subject]:
    """Find the subjects of a set whose files have changed since it was built."""
    held = {(tree["cohort"], tree["subject"]): tree for tree in old.sources}
    known = [subject for subject in subjects if (subject.cohort, subject.id) in held]
    described = describe_all(known, jobs)
    return [
        subject
        for subject, tree in zip(known, described, strict=True)
        if not seal_fingerprints(tree, pseudonyms).items() <= held[subject.cohort, subject.id].items()
    ]


def find_same_voxels(
    new: Sequence[dict[str, str]], held: Sequence[dict[str, str]]
) -> list[tuple[str, str, Field, str]]:
    """Find new volumes whose voxels equal those of another volume, in a repacked, reoriented or relabelled file.

    Args:
        new: sources of this build, as the manifest lists them.
        held: sources of the set that is extended.

    Returns:
        Cohort, subject and field of each such volume, and the cohort and subject that it equals.
    """
    first: dict[str, str] = {}
    copies: list[tuple[str, str, Field, str]] = []
    for is_new, trees in ((False, held), (True, new)):
        for tree in trees:
            for field in FIELDS:
                voxels = tree.get(f"{field}_voxels")
                if voxels in first and is_new:
                    copies.append((tree["cohort"], tree["subject"], field, first[voxels]))
                elif voxels is not None:
                    first[voxels] = f"{tree['cohort']} {tree['subject']}"
    return copies
