"""Find the known name that a user probably meant."""

import difflib
from collections.abc import Collection

# More names than these are not listed in an error.
MOST_LISTED = 20


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint with the most similar known name, such as ` (did you mean seed?)`, or an empty string.

    Case and the difference between `-` and `_` do not count. The last part of a dotted key may stand for the whole:
    `lr` finds `optim.lr`.

    Args:
        name: what the user wrote.
        known: names that would be right. If they begin with `--`, `name` does too.
    """
    meant = _most_similar(name, known)
    return f" (did you mean {meant}?)" if meant else ""


def _most_similar(name: str, known: Collection[str]) -> str | None:
    plain = {_plain(each): each for each in known}
    wanted = _plain(name)
    by_last_part: dict[str, list[str]] = {}
    for each in plain:
        by_last_part.setdefault(_last_part(each), []).append(each)
    near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.8)
    near = near or by_last_part.get(_last_part(wanted), [])
    near = near or difflib.get_close_matches(wanted, plain, n=1)
    if not near and (last := difflib.get_close_matches(_last_part(wanted), by_last_part, n=1, cutoff=0.75)):
        near = by_last_part[last[0]]
    return plain[min(near, key=lambda each: (each.count("."), len(each)))] if near else None


def list_known(what: str, known: Collection[str], verb: str) -> str:
    """Return a sentence that lists the known names, or if they are many, says where they are listed.

    Args:
        what: what the names stand for, in the plural, such as `keys`.
        known: the names.
        verb: the command whose help lists them; empty if there is none.
    """
    if len(known) <= MOST_LISTED or not verb:
        return f"Known {what}: {', '.join(sorted(known))}."
    return f"`upfield {verb} --help` lists the {what}."


def _plain(name: str) -> str:
    return name.removeprefix("--").lower().replace("-", "_")


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
