import io

from upfield.common.tables import terminal_width, text_table

LONG = "word " * 200


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    header, rule, first, second = text_table(["", "mean"], [["a", "1.5"], ["long name", "12.25"]], numeric=True).split(
        "\n"
    )
    assert header.endswith(" mean")
    assert set(rule) == {"-"}
    assert first == "a            1.5"
    assert second == "long name  12.25"


def test_without_a_width_every_cell_is_on_one_line_in_full() -> None:
    lines = text_table(["message", "file"], [[LONG, "/data/" * 100]], wrapped=("message",)).splitlines()
    assert len(lines) == 3
    assert lines[2].split() == [*LONG.split(), "/data/" * 100]


def test_wrapped_columns_are_fitted_into_the_width_and_lose_nothing() -> None:
    text = text_table(["message", "file"], [[LONG, "/data/a.nii"]], wrapped=("message",), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("word") == 200
    assert "/data/a.nii" in text


def test_a_width_that_is_too_small_cuts_nothing_off() -> None:
    text = text_table(["message", "file"], [[LONG, "/data/a.nii"]], wrapped=("message",), width=5)
    assert text.count("word") == 200
    assert "/data/a.nii" in text


def test_values_that_look_like_markup_stay_as_they_are() -> None:
    values = ["[red]x[/red]", "[1, 2]", ":smile:", "\x5b/]"]
    assert text_table(["[b]"], [[value] for value in values]).splitlines()[2:] == values


def test_only_a_terminal_has_a_width() -> None:
    assert terminal_width(io.StringIO()) is None
