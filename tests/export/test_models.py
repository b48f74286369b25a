"""`upfield models`: the list, the cards, and names that do not exist."""

from collections.abc import Callable

from upfield.export.models import main


def test_models_are_listed(run_cli: Callable) -> None:
    code, out, _ = run_cli(main)
    assert code == 0
    assert "starter-t1" in out
    assert " MB" in out


def test_a_name_prints_the_card(run_cli: Callable) -> None:
    code, out, _ = run_cli(main, "starter-t1")
    assert code == 0
    assert all(heading in out for heading in ("## What it was trained on", "## Figures", "## How to repeat"))


def test_a_name_that_does_not_exist_is_refused(run_cli: Callable) -> None:
    code, _, err = run_cli(main, "startr")
    assert code == 2
    assert "startr: no model with this name comes with the package (did you mean starter-t1?)." in err
