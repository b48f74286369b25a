"""Path patterns with `{fields}` and the wildcards `*`, `?` and `**`."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

FIELD = re.compile(r"{(\w+)}")
# `**` as a whole part of a path: any number of folders.
ANY_FOLDERS = re.compile(r"(?:(?<=/)|^)\*\*/")


def list_files(pattern: str) -> list[str]:
    """Return the sorted paths of all files that match a pattern's wildcards; a field matches like `*`.

    Links are followed, but never into a folder that holds the link. Hidden files and folders are left out.
    """
    # Brackets are literal in our patterns.
    return sorted({path for path in _expand(FIELD.sub("*", pattern).replace("[", "[[]")) if not os.path.isdir(path)})


def _expand(wildcards: str) -> Iterator[str]:
    head, *rest = ANY_FOLDERS.split(wildcards, maxsplit=1)
    if not rest:
        yield from glob.glob(wildcards)
        return
    for start in glob.glob(head or "."):
        for folder in _folders(Path(start), ()):
            yield from _expand(f"{glob.escape(str(folder))}/{rest[0]}")


def _folders(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield a folder and all folders below it, except links to those that lead to it (`above`: device and inode)."""
    try:
        status = folder.stat()
        if (identity := (status.st_dev, status.st_ino)) in above:
            return
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except OSError:
        return
    yield folder
    for name in names:
        yield from _folders(folder / name, (*above, identity))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link to itself is an error for the entry's own method.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def to_regex(pattern: str) -> str:
    """Return the regular expression of a pattern, with a named group for each field."""
    seen: set[str] = set()
    pieces = re.split(r"({\w+}|\*\*/|\*|\?)", pattern)
    return "".join(_piece_to_regex(piece, seen) for piece in pieces)


def _piece_to_regex(piece: str, seen: set[str]) -> str:
    wildcards = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    if piece in wildcards:
        return wildcards[piece]
    if not (parts := FIELD.fullmatch(piece)):
        return re.escape(piece)
    name = parts[1]
    if name in seen:
        return f"(?P={name})"
    seen.add(name)
    return f"(?P<{name}>{r'[0-9]+' if name == 'slice' else '[^/]+?'})"
