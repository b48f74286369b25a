"""What a set was made from: fingerprints of its source files, kept in the manifest.

With them a later build finds a scan that the set holds already, under whatever name it comes, and files that are no
longer those the set was made from.
"""

from collections.abc import Iterable, Sequence

from upfield.sharding.cohort import Subject
from upfield.sharding.content import DAMAGED, fingerprint
from upfield.sharding.errors import VolumeError
from upfield.sharding.manifest import Manifest
from upfield.sharding.privacy import Pseudonyms
from upfield.sharding.problem import Problem


def describe_sources(subject: Subject) -> dict[str, str]:
    """Give cohort, subject, and the fingerprint of each of a subject's volumes by field.

    Raises:
        VolumeError: a file cannot be read.
    """
    tree = {"cohort": subject.cohort, "subject": subject.id}
    for field, source in subject.volumes:
        try:
            tree[field] = fingerprint(source.paths)
        except DAMAGED as error:
            raise VolumeError(str(source), f"expected files that can be read, found {error}; mend them") from error
    return tree


def sealed(trees: Iterable[dict[str, str]], pseudonyms: Pseudonyms | None) -> list[dict[str, str]]:
    """Give what `describe_sources` gives as a set may state it.

    Whoever has the scan could tell its pseudonym by the plain fingerprint; a keyed one tells only its owner.
    """
    if pseudonyms is None:
        return list(trees)
    return [
        {key: pseudonyms.seal(value) if key in ("high", "low") else value for key, value in tree.items()}
        for tree in trees
    ]


def held_already(subjects: Sequence[Subject], old: Manifest, pseudonyms: Pseudonyms | None) -> list[Problem]:
    """Find new subjects with a volume that the set holds already, under another name or cohort.

    Args:
        subjects: those that are to be added, without other problems.
        old: the set.
        pseudonyms: those of the set.
    """
    there = {tree[field]: tree for tree in old.sources for field in ("high", "low") if field in tree}
    problems: list[Problem] = []
    for subject in subjects:
        (tree,) = sealed([describe_sources(subject)], pseudonyms)
        for field, source in subject.volumes:
            if twin := there.get(tree[field]):
                message = (
                    "expected a scan that the set does not hold yet, found the same content as that of one of its "
                    "subjects; leave one out"
                )
                files = f"{source.paths[0]} = {twin['cohort']} {twin['subject']}, in the set"
                problems.append(Problem(subject.cohort, subject.name, field, "same", files, message))
    return problems


def changed_subjects(subjects: Sequence[Subject], old: Manifest, pseudonyms: Pseudonyms | None) -> list[Subject]:
    """Give those subjects of a set whose files do not hold what they held when it was built."""
    there = {(tree["cohort"], tree["subject"]): tree for tree in old.sources}
    return [
        subject
        for subject in subjects
        if (tree := there.get((subject.cohort, subject.id)))
        and sealed([describe_sources(subject)], pseudonyms) != [tree]
    ]
