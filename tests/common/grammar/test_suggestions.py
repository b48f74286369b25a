import pytest

from upfield.common.grammar.suggestions import list_known, nearest

KEYS = [
    "--data.batch_size",
    "--data.shards",
    "--model.preset",
    "--optim.lr",
    "--run.out",
    "--run.epochs",
    "--processes",
]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("--lr", "--optim.lr"),
        ("--model.lr", "--optim.lr"),
        ("--out", "--run.out"),
        ("--data.batch-size", "--data.batch_size"),
        ("--batch_sizes", "--data.batch_size"),
        ("--Processes", "--processes"),
        ("--run.epoch", "--run.epochs"),
    ],
)
def test_the_nearest_key_is_named(wrong, meant):
    assert nearest(wrong, KEYS) == f" (did you mean {meant}?)"


def test_nothing_is_guessed_without_a_similar_name():
    assert nearest("--colour", KEYS) == ""


def test_many_names_are_not_listed():
    assert list_known("keys", ["b", "a"], "train") == "Known keys: a, b."
    assert list_known("keys", [str(n) for n in range(30)], "train") == "`upfield train --help` lists the keys."
