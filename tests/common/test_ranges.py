import pytest

from upfield.common.ranges import check_range


def test_ranges_within_their_limits_pass():
    check_range("key", (1.0, 1.0), 1.0, 1.0)
    check_range("key", (0.0, 1e9), 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2, 1), "^key: the first value, 2, exceeds the second, 1. Swap them.$"),
        ((0.5, 1), r"^key: expected two values from 1 to 3, found \[0.5, 1\]. Correct the range.$"),
        ((1, 4), "from 1 to 3"),
        ((float("nan"), 2), "found .nan, 2."),
    ],
)
def test_other_ranges_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_range("key", values, 1, 3)
