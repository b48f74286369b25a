"""Find subjects that may be the same person and are in different splits, by their ids alone.

Two cohorts may hold the same people, and a pattern may take the session, the run or the contrast of a scan for a part
of the subject's id. In both cases, one person has several subjects, and a hash may put them into different splits.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from upfield.sharding.shardset.manifest import Manifest
from upfield.sharding.shardset.sample_key import SPLITS, Split

PREFIX = re.compile(r"sub(?:j|ject)?(?:[-_ .]+|(?=\d))", re.IGNORECASE)
# What follows the subject in a BIDS name. Whatever comes after the first such part describes a scan, not a person.
ENTITY = re.compile(
    r"(?:(?<=\d)[-_ .](?:ses|session|run)[-_]?\d+|[-_ .](?:ses|run|acq|task|ce|rec|dir|echo|part|inv|mod|space|desc)-"
    r"[^\W_]+)(?![A-Za-z0-9]).*",
    re.IGNORECASE | re.DOTALL,
)
# Contrasts and repeated visits as other names have them. They count only after an id with a digit.
CONTRAST = re.compile(r"(?<=\d)[-_ .](?:T1|T1w|T2|T2w|PD|PDw|FLAIR|MPRAGE|MP2RAGE)$", re.IGNORECASE)
VISIT = re.compile(
    r"(?<=\d)[-_ .](?:(?:visit|scan|tp|timepoint|wave|mr|v|m)[-_]?d?\d+|(?:followup|fu|retest)\d*|baseline|pre|post)$",
    re.IGNORECASE,
)
MAX_SHOWN = 5


@dataclass(frozen=True, order=True)
class Member:
    """A subject of a set."""

    cohort: str
    """Cohort name."""
    name: str
    """Its id, as it appears in the file names."""
    split: Split
    """The split that holds its samples."""


def find_namesakes(members: Iterable[Member]) -> list[tuple[Member, ...]]:
    """Find subjects of different splits whose ids may stand for one person.

    The ids may differ in letter case, in leading zeros, in `sub-` before them, and in a session, run, visit or contrast
    after them.

    Returns:
        One group per person, sorted; each member of a group is sorted too.
    """
    return _in_several_splits(members, lambda member: person_of(member.name))


def find_shared_people(members: Iterable[Member]) -> list[tuple[Member, ...]]:
    """Find subjects of one cohort and of different splits whose ids are equal except for a BIDS entity or a contrast.

    Within one cohort, such ids certainly stand for several scans of one person.

    Returns:
        One group per cohort and person, sorted.
    """
    return _in_several_splits(members, lambda member: (member.cohort, _scanned_person(member.name)))


def members_of(manifest: Manifest) -> list[Member]:
    """Return the subjects of a set; an empty list if the set holds pseudonyms, which cannot be compared."""
    if manifest.tree["config"].get("pseudonymize"):
        return []
    return [Member(s["cohort"], s["subject"], split) for split in SPLITS for s in manifest.subjects(split)]


def namesakes_message(groups: list[tuple[Member, ...]]) -> str:
    """Return one sentence that names some of the people that `find_namesakes` found, and one with the remedy."""
    names = [" = ".join(sorted({member.name for member in group})) for group in groups]
    shown = f"{', '.join(names[:MAX_SHOWN])}{', ...' if names[MAX_SHOWN:] else ''}"
    return (
        f"{len(names)} {'person' if len(names) == 1 else 'people'} may be in more than one split, because equal or "
        f"similar ids are in different splits ({shown}). If these ids stand for the same person, hold all of them out "
        "together, with lists in `split` of every cohort."
    )


def person_of(name: str) -> str:
    """Return the part of an id that stands for the person, so that different spellings of one id become equal."""
    person = VISIT.sub("", _scanned_person(name)).casefold()
    # Leading zeros carry no meaning, and separators only do between two numbers.
    person = re.sub(r"(?<!\d)0+(?=\d)", "", person)
    return re.sub(r"(?<!\d)[-_ .]+|[-_ .]+(?!\d)", "", person) or name


def _scanned_person(name: str) -> str:
    """Return an id without `sub-` before it and without a BIDS entity or a contrast after it."""
    person = PREFIX.sub("", name, count=1) if PREFIX.match(name) else name
    return CONTRAST.sub("", ENTITY.sub("", person)) or name


def _in_several_splits(members: Iterable[Member], key: Callable[[Member], object]) -> list[tuple[Member, ...]]:
    groups: dict[object, set[Member]] = defaultdict(set)
    for member in members:
        groups[key(member)].add(member)
    return sorted(tuple(sorted(group)) for group in groups.values() if len({member.split for member in group}) > 1)
