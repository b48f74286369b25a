"""Assign each subject of a cohort to a split."""

import hashlib
from typing import Any

from upfield.common.errors import InputError
from upfield.sharding.configuration import CohortConfig
from upfield.sharding.shardset.sample_key import Split


def assign_splits(cohort: CohortConfig, ids: dict[str, str]) -> dict[str, Split]:
    """Assign each subject to a split, by a list of names or by a stable hash of cohort and id.

    A count takes the subjects with the smallest hashes. A fraction takes the subjects whose hashes lie in a range of
    this width. So the splits do not depend on other cohorts, on the order of files, or on the seed.

    Args:
        cohort: its name and `split`.
        ids: name of each subject -> the id that is hashed.

    Raises:
        InputError: there are fewer subjects than the split asks for, or it names one that does not exist or is in both
            splits.
    """
    splits: dict[str, Split] = {}
    position = {name: _hash(cohort.name, identifier) for name, identifier in ids.items()}
    bound = 0.0
    # Lists come first, so that a count never takes a subject that the list of the other split names.
    for split in sorted(("test", "val"), key=lambda split: not isinstance(cohort.split.get(split), list)):
        wanted = cohort.split.get(split, 0)
        free = [name for name in sorted(ids, key=position.__getitem__) if name not in splits]
        if isinstance(wanted, list):
            chosen = _listed(cohort, split, wanted, free)
        elif isinstance(wanted, float) and 0 <= wanted < 1:
            chosen = [name for name in free if bound <= position[name] < bound + wanted]
            bound += wanted
            if bound > 1:
                raise InputError(
                    f"cohort {cohort.name}: split: expected fractions with a sum of at most 1, found {bound:g}."
                )
        else:
            assert not isinstance(wanted, str), "CohortConfig refuses text"
            chosen = _counted(cohort, split, wanted, free, len(ids))
        splits |= dict.fromkeys(chosen, split)
    return {name: splits.get(name, "train") for name in ids}


def _listed(cohort: CohortConfig, name: str, wanted: list[Any], free: list[str]) -> list[str]:
    if absent := [subject for subject in wanted if subject not in free]:
        raise InputError(
            f"cohort {cohort.name}: split.{name}: these subjects do not exist or are in both splits: "
            f"{list_some(absent)}. Choose from {list_some(sorted(free))}."
        )
    return wanted


def _counted(cohort: CohortConfig, name: str, wanted: float, free: list[str], num_subjects: int) -> list[str]:
    if isinstance(wanted, float) or not 0 <= wanted <= len(free):
        num_others = num_subjects - len(free)
        others = f" (the other split has {num_others} of the {num_subjects} subjects)" if num_others else ""
        raise InputError(
            f"cohort {cohort.name}: split.{name}: expected a count from 0 to {len(free)}{others}, a fraction below 1 "
            f"or a list, found {wanted}."
        )
    return free[:wanted]


def _hash(cohort: str, subject: str) -> float:
    digest = hashlib.sha256(f"{cohort}/{subject}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def list_some(items: list[Any]) -> str:
    """Return the first five items as text, and the number of the others."""
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
