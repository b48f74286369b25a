"""Report people who may be in several splits of a set, the subjects that it already holds included."""

from collections.abc import Iterator, Sequence

from upfield.sharding.cohorts.privacy import Pseudonyms, read_names
from upfield.sharding.cohorts.problems import TWIN, Problem
from upfield.sharding.cohorts.subjects import Source, Subject
from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.namesakes import Member, find_namesakes, find_shared_people, members_of
from upfield.sharding.shardset.sample_key import SPLITS


def namesakes_of(
    subjects: Sequence[Subject[Source]], old: Manifest | None, pseudonyms: Pseudonyms | None
) -> list[tuple[Member, ...]]:
    """Find people who may be in several splits, among new subjects and those of the set that is extended.

    Args:
        subjects: subjects to be added, without those that are left out.
        old: manifest of the set that is extended, or None.
        pseudonyms: pseudonyms of the set, or None. The names behind those of the old set are taken from the list beside
            the key. If it is missing, only equal names are recognised.
    """
    members = [Member(subject.cohort, subject.name, subject.split) for subject in subjects]
    return find_namesakes([*members, *(_held_members(old, subjects, pseudonyms) if old else ())])


def _held_members(
    old: Manifest, subjects: Sequence[Subject[Source]], pseudonyms: Pseudonyms | None
) -> Iterator[Member]:
    """Yield the subjects of a set under their names; leave out pseudonyms whose names are unknown."""
    if pseudonyms is None:
        yield from members_of(old)
        return
    names = {(cohort, public): name for cohort, name, public in read_names(pseudonyms)}
    candidates = {subject.name for subject in subjects}
    names |= {(cohort, pseudonyms.of(cohort, name)): name for cohort in old.cohorts for name in candidates}
    for split in SPLITS:
        for tree in old.subjects(split):
            if name := names.get((tree["cohort"], tree["subject"])):
                yield Member(tree["cohort"], name, split)


def shared_people(subjects: Sequence[Subject[Source]]) -> list[Problem]:
    """Report each held-out subject of a cohort whose person is in another split too, according to the ids.

    Args:
        subjects: subjects to be added, without those that are left out.
    """
    mains = {(subject.cohort, subject.name): subject.main for subject in subjects}
    problems: list[Problem] = []
    for group in find_shared_people(Member(subject.cohort, subject.name, subject.split) for subject in subjects):
        for member in group:
            if member.split == "train":
                continue
            other = next(twin for twin in group if twin.split != member.split)
            message = (
                f"according to the ids, this scan in {member.split} and one in {other.split} show the same person. "
                "Hold out all scans of a person together, with lists in `split`."
            )
            field, source = mains[member.cohort, member.name]
            file = f"{source}{TWIN}{mains[other.cohort, other.name][1]}"
            problems.append(Problem(member.cohort, member.name, field, "person", file, message))
    return problems
