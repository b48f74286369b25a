"""Find the command lines in cluster files and the guides about them, in code and in comments."""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from upfield.cli.main import VERBS
from upfield.common.command import Command

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
PAGES = [ROOT / f"docs/guides/machines/{name}.md" for name in ("many-gpus", "slurm", "kubernetes", "ray")]
SCRIPTS = {f"{module.split('.')[1]}/{module.split('.')[2]}.py": verb for verb, (module, _) in VERBS.items()}
SHELL = ("|", "||", "&&", ";", "&", ">", "<", "(", ")")
# Values for shell variables and for placeholders that the reader replaces.
VALUES = {"$STOPPED": "75", "${SLURM_CPUS_PER_TASK:-1}": "8", "N": "2", "NN": "2", "M": "2"}
BATCH = re.compile(r"cluster/slurm/(train|tune|shard)\.sbatch")
NODE = "cluster/node.sh"
PROGRAM = re.compile(
    rf"\bupfield (?:{'|'.join(VERBS)})\b|\b(?:accelerate launch|torchrun|sbatch)\b"
    rf"|\bpython [a-z]+/[a-z_]+\.py\b|{re.escape(NODE)}\b"
)
OWN_FOLDERS = tuple(f"{folder.name}/" for folder in ROOT.iterdir() if folder.is_dir())


@dataclass(frozen=True)
class CommandLine:
    """A command line in a file."""

    path: Path
    words: list[str]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}: {shlex.join(self.words)}"

    @property
    def launcher(self) -> list[str]:
        """Options of `accelerate launch` or torchrun up to the script; empty if there is no launcher."""
        return self.words[: self._script + 1] if self.words[0] in ("accelerate", "torchrun") else []

    @property
    def verb(self) -> str:
        if self.words[0] in ("upfield", NODE):
            return "train" if self.words[0] == NODE else self.words[1]
        script = self.words[self._script]
        return match[1] if (match := BATCH.fullmatch(script)) else SCRIPTS[script]

    @property
    def arguments(self) -> list[str]:
        """Arguments of the verb; for `shard.sbatch`, the arguments that the script passes to the verb."""
        if self.words[0] in ("upfield", NODE):
            return self.words[1 if self.words[0] == NODE else 2 :]
        arguments = self.words[self._script + 1 :]
        if arguments[:1] == ["--container"]:
            arguments = arguments[2:]
        if self.words[self._script] != "cluster/slurm/shard.sbatch":
            return arguments
        out, *_ = arguments
        return ["--out", out, *(arguments[arguments.index("--") + 1 :] if "--" in arguments else [])]

    @property
    def _script(self) -> int:
        return next(place for place, word in enumerate(self.words) if _is_script(word))


def _is_script(word: str) -> bool:
    return word in SCRIPTS or BATCH.fullmatch(word) is not None


def command_of(verb: str) -> Command:
    return import_module(VERBS[verb][0]).COMMAND


def installed(program: str) -> Path:
    """Return a program that pip installed beside this interpreter, even if its folder is not on PATH."""
    return Path(sys.executable).with_name(program)


def command_lines(path: Path) -> Iterator[CommandLine]:
    """Yield the command lines of a file that have arguments, with placeholders replaced by values."""
    for line in _joined(path.read_text(encoding="utf-8")):
        for start in PROGRAM.finditer(line):
            words = list(_words(line[start.start() :]))
            complete = words[0] in ("upfield", NODE) or any(map(_is_script, words))
            if complete and len(words) > 2:
                yield CommandLine(path, words)


def _joined(text: str) -> list[str]:
    """Return the lines of a text, with those continued by a backslash, or in comments by indentation, joined."""
    text = re.sub(r"\\\n\s*", " ", text)
    return re.sub(r"\n#     (?=\S)", " ", text).splitlines()


def _words(line: str) -> Iterator[str]:
    # In a README, code ends with its backtick; a quoted command ends with the quote.
    code = re.split(r"[`']", line, maxsplit=1)[0]
    lexer = shlex.shlex(re.sub(r"\[--[^]]*\]|\.\.\.|…", " ", code), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    for word in lexer:
        if word in SHELL:
            return
        if "[@]" not in word and word != "$@":
            yield VALUES.get(word, word)


REQUIRED = {"train": ("--data.shards", "--run.out"), "tune": ("--train.data.shards",)}


def completed(verb: str, arguments: list[str]) -> list[str]:
    """Replace `--config` files and `"$@"`, which only the reader can supply, with the flags that the verb requires.

    Configuration files in the repository's own folders must exist.
    """
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
    missing = [flag for flag in REQUIRED.get(verb, ()) if flag not in arguments]
    return kept + [word for flag in missing for word in (flag, "readers")]
