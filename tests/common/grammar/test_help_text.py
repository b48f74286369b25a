"""The help of all verbs fits a terminal and shows required keys first."""

from importlib import import_module

import pytest

from upfield.cli.main import ROAD, VERBS, main
from upfield.common.command import parse
from upfield.common.grammar.help_text import help_text
from upfield.common.grammar.key_help import describe_keys

COMMANDS = {verb: import_module(module).COMMAND for verb, (module, _) in VERBS.items()}


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_80_columns_and_words_for_types(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = help_text(COMMANDS[verb])
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert not any(name in text for name in ("Union", "Literal", "Path]", "null)", "<class"))


@pytest.mark.parametrize("verb", VERBS)
def test_required_keys_come_first_and_examples_last(verb):
    command = COMMANDS[verb]
    text = help_text(command)
    keys = [each.key for each in describe_keys(command.schema) if each.is_required and "[" not in each.key]
    places = [text.index(f"--{key}  ") for key in keys]
    end = text.find("\n\nOptions:") if "\n\nOptions:" in text else len(text)
    assert all(place < end for place in places)
    assert text.endswith(command.examples[-1])


@pytest.mark.parametrize("example", [e for command in COMMANDS.values() for e in command.examples])
def test_examples_parse(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("cohort/cohorts.yaml", ""), ("train.yaml", "{data: {shards: a}, run: {out: b}}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "sweep.yaml").write_text("train: {data: {shards: a}}")
    program, verb, *arguments = example.replace("'", "").split()
    assert program == "upfield"
    parse(COMMANDS[verb], arguments)


def test_the_overview_names_each_verb_once_and_fits_a_terminal(run_cli):
    assert sorted(verb for verbs in ROAD.values() for verb in verbs) == sorted(VERBS)
    code, text, _ = run_cli(main)
    assert code == 0
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert text.index("\n  shard ") < text.index("\n  train ") < text.index("\n  export ") < text.index("\n  enhance ")


def test_a_narrow_terminal_gets_shorter_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert sum(len(line) > 50 for line in help_text(COMMANDS["preview"]).splitlines()) <= 3  # the examples
