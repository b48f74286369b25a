"""Each page is short, is in the navigation, and names only commands, flags, keys and files that exist."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from commandlines import ROOT, command_of, completed
from hooks import PLACE
from pages import COMMENT, DOCS, INLINE_CODE, PAGES, blocks, command_lines, count_words, links, navigation, prose, short

from upfield.cli.main import VERBS
from upfield.common import command
from upfield.common.command import Command
from upfield.common.grammar.configuration_errors import known_flags

MOST_WORDS, MOST_BYTES, MOST_PICTURES = 800, 300_000, 16
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
PICTURES = sorted(path for path in DOCS.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg", ".svg", ".gif", ".webp"))
SECTIONS = ("data", "model", "loss", "optim", "run", "synthetic", "geometry", "resources", "asha")
KEY = re.compile(rf"(?:{'|'.join(SECTIONS)})\.[a-z_]+(?:\.[a-z_]+)*")
FLAG = re.compile(r"--[A-Za-z][\w.]*(?![\w-])")
FILES = (".py", ".yaml", ".md", ".json", ".jsonl", ".yml", ".txt", ".csv", ".pt", ".html", ".safetensors", ".onnx")


def test_the_navigation_lists_every_page_once() -> None:
    assert sorted(navigation()) == sorted(map(short, PAGES))


@pytest.mark.parametrize("path", [path for path in PAGES if not short(path).startswith("reference/")], ids=short)
def test_a_page_is_short(path: Path) -> None:
    assert count_words(TEXTS[path]) <= MOST_WORDS


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_a_page_has_one_title_and_its_links_and_pictures_exist(path: Path) -> None:
    assert len(re.findall(r"^# ", prose(TEXTS[path]), re.MULTILINE)) == 1
    near = [link.partition("#")[0] for link in links(TEXTS[path]) if not re.match(r"[a-z]+:", link)]
    assert [link for link in near if link and not (path.parent / link).is_file()] == []


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_a_page_is_finished(path: Path) -> None:
    comments = [comment for comment in COMMENT.findall(prose(TEXTS[path])) if not PLACE.fullmatch(comment)]
    assert comments == []


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_a_page_loads_nothing_from_elsewhere(path: Path) -> None:
    text = INLINE_CODE.sub("", prose(TEXTS[path]))
    assert (
        re.findall(r"!\[[^\]]*\]\((?:https?:)?//|<(?:script|iframe|link|object|embed)|src=.(?:https?:)?//", text) == []
    )
    assert "mermaid" not in [language for language, _ in blocks(TEXTS[path])]


@pytest.mark.parametrize("path", PICTURES, ids=short)
def test_a_picture_is_small_and_a_page_shows_it(path: Path) -> None:
    assert path.stat().st_size <= MOST_BYTES
    assert len(list(path.parent.iterdir())) <= MOST_PICTURES
    shown = {(page.parent / link).resolve() for page, text in TEXTS.items() for link in links(text)}
    assert path in shown or f"docs/{short(path)}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _each_parser_is_built_once() -> Iterator[None]:
    build = command._build_parser
    by_verb = cache(lambda verb: build(command_of(verb)))

    def build_once(each: Command) -> object:
        return by_verb(each.verb) if each.verb in VERBS else build(each)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "_build_parser", build_once)
        yield


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_the_commands_of_a_page_are_parsed(path: Path) -> None:
    for line in command_lines(path):
        if not {"--help", "--print_config"} & set(line.arguments):
            command.parse(command_of(line.verb), completed(line.verb, line.arguments))


@cache
def _flags() -> frozenset[str]:
    return frozenset().union(*(known_flags(command_of(verb).schema) for verb in VERBS))


@pytest.mark.parametrize("path", PAGES, ids=short)
def test_a_page_names_only_flags_and_keys_that_exist(path: Path) -> None:
    codes = INLINE_CODE.findall(prose(TEXTS[path]))
    flags = {flag for code in codes if code.startswith("--") for flag in FLAG.findall(code.split(" ")[0])}
    keys = {f"--{code}" for code in codes if KEY.fullmatch(code) and not code.endswith(FILES)}
    assert sorted((flags | keys) - _flags() - OTHER_PROGRAMS) == []


# Flags of pip, accelerate, Slurm, container programs and our own programs in benchmarks/.
OTHER_PROGRAMS = {
    "--bind",
    "--cache_bytes",
    "--container-mounts",
    "--device",
    "--fetch",
    "--groups",
    "--main_process_ip",
    "--num_cpu_threads_per_process",
    "--only",
    "--requeue",
    "--shm-size",
    "--signal",
    "--time",
    "--user",
    "--version",
}
