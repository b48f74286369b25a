"""The pages of the site, and the blocks of code, links and words in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from commandlines import ROOT, SCRIPTS, SHELL, VALUES, CommandLine

from upfield.cli.main import VERBS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^( *)(```+|~~~+) *(\w*).*?\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(!?)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)[^)]*\)")
SHELLS = ("bash", "console", "sh", "shell")
COMMAND = re.compile(
    rf"(?:\$ )?(?:\w+=\S+ )*(?=upfield (?:{'|'.join(VERBS)}) |accelerate launch |torchrun |python \w+/)"
)


def short(path: Path) -> str:
    """Return the path of a page below `docs`."""
    return path.relative_to(DOCS).as_posix()


def count_words(text: str) -> int:
    """Count the words of a page, in code and tables too, without the marks of Markdown and without comments."""
    return sum(any(character.isalnum() for character in word) for word in COMMENT.sub("", text).split())


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the content of each block of code."""
    yield from ((match[3], match[4]) for match in FENCE.finditer(text))


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Return the targets of all links and pictures."""
    return [match[2] for match in LINK.finditer(INLINE_CODE.sub("", COMMENT.sub("", prose(text))))]


def command_lines(path: Path) -> Iterator[CommandLine]:
    """Yield the command lines of upfield in a page's blocks of shell code."""
    for language, content in blocks(path.read_text(encoding="utf-8")):
        lines = re.sub(r"\\\n\s*", " ", content).splitlines() if language in SHELLS else []
        for line in map(str.strip, lines):
            if match := COMMAND.match(line):
                words = list(_words(line[match.end() :]))
                if words[0] == "upfield" or any(word in SCRIPTS for word in words):
                    yield CommandLine(path, words)


def _words(line: str) -> Iterator[str]:
    lexer = shlex.shlex(re.sub(r"\.\.\.|…", " ", line), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    for word in lexer:
        if word in SHELL:
            return
        yield VALUES.get(word, word)


def navigation() -> list[str]:
    """Return the pages that the navigation lists, in order."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return list(_pages_in(yaml.safe_load(text)["nav"]))


def _pages_in(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    else:
        for each in item.values() if isinstance(item, dict) else item:
            yield from _pages_in(each)
