"""Find the command lines in cluster files and their README, in code and in comments."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from upfield.cli.main import VERBS
from upfield.sharding.command import Command

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
SCRIPTS = {f"{module.split('.')[1]}/{module.split('.')[2]}.py": verb for verb, (module, _) in VERBS.items()}
SHELL = ("|", "||", "&&", ";", "&", ">", "<", "(", ")")
# What stands for something else: a shell's variables, and words for the reader's own.
VALUES = {"$STOPPED": "75", "${SLURM_CPUS_PER_TASK:-1}": "8", "N": "2", "NN": "2", "M": "2"}
PROGRAM = re.compile(rf"\bupfield (?:{'|'.join(VERBS)})\b|\b(?:accelerate launch|torchrun)\b|\bpython [a-z]+/[a-z_]+\.py\b")
OWN_FOLDERS = tuple(f"{folder.name}/" for folder in ROOT.iterdir() if folder.is_dir())


@dataclass(frozen=True)
class CommandLine:
    """One, as it stands in a file."""

    path: Path
    words: list[str]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}: {shlex.join(self.words)}"

    @property
    def launcher(self) -> list[str]:
        """Options of `accelerate launch` or torchrun, with the script; nothing where there is no launcher."""
        return self.words[: self._script + 1] if self.words[0] in ("accelerate", "torchrun") else []

    @property
    def verb(self) -> str:
        return self.words[1] if self.words[0] == "upfield" else SCRIPTS[self.words[self._script]]

    @property
    def arguments(self) -> list[str]:
        return self.words[2 if self.words[0] == "upfield" else self._script + 1 :]

    @property
    def _script(self) -> int:
        return next(place for place, word in enumerate(self.words) if word in SCRIPTS)


def command_of(verb: str) -> Command:
    return import_module(VERBS[verb][0]).COMMAND


def command_lines(path: Path) -> Iterator[CommandLine]:
    """Find the command lines of a file that have arguments; their words are the reader's words made values."""
    for line in _joined(path.read_text(encoding="utf-8")):
        for start in PROGRAM.finditer(line):
            words = list(_words(line[start.start() :]))
            if len(words) > 2 and (words[0] == "upfield" or any(word in SCRIPTS for word in words)):
                yield CommandLine(path, words)


def _joined(text: str) -> list[str]:
    """Give lines, with those that go on after a backslash, and comments' that go on by their indent, in one."""
    text = re.sub(r"\\\n\s*", " ", text)
    return re.sub(r"\n#     (?=\S)", " ", text).splitlines()


def _words(line: str) -> Iterator[str]:
    # In a README's table or a sentence, code ends with its backtick; in a quoted command with the quote.
    code = re.split(r"[`']", line, maxsplit=1)[0]
    lexer = shlex.shlex(re.sub(r"\[--[^]]*\]|\.\.\.|…", " ", code), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    for word in lexer:
        if word in SHELL:
            return
        if "[@]" not in word:
            yield VALUES.get(word, word)


def without_readers_files(arguments: list[str]) -> list[str]:
    """Leave out `--config` of files that only the reader has; those in the repository's own folders must be there."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word != "--config":
            kept.append(word)
            continue
        path = next(words)
        if path.startswith(OWN_FOLDERS):
            assert (ROOT / path).is_file(), path
            kept += [word, str(ROOT / path)]
    return kept
