import pytest

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.sample_key import SampleKey

KEYS = [
    ("ixi-IXI015-synthetic-0-x098", SampleKey("ixi", "IXI015", "synthetic", 0, 98)),
    ("nyu-sub-01-real-0-x007", SampleKey("nyu", "sub-01", "real", 0, 7)),
    ("a_1-x-real-3-x2-synthetic-12-x1000", SampleKey("a_1", "x-real-3-x2", "synthetic", 12, 1000)),
    ("a---real-0-x000", SampleKey("a", "-", "real", 0, 0)),
]


@pytest.mark.parametrize(("text", "key"), KEYS)
def test_keys_are_parsed_and_formatted_back(text, key):
    assert SampleKey.parse(text) == key
    assert str(key) == text


@pytest.mark.parametrize(
    "text", ["000017", "a-b-real-0-x07", "a-b-real-00-x007", "a-b-real-0-x0070", "a-b-fake-0-x007", ""]
)
def test_keys_that_shard_does_not_write_are_refused(text):
    with pytest.raises(ShardSetError, match="expected a key like cohort-subject-kind-variant-x090"):
        SampleKey.parse(text)


def test_sorted_keys_follow_the_volume_and_put_real_first():
    texts = ["a-s-synthetic-0-x002", "a-s-real-0-x1000", "a-s-real-0-x999", "a-s-synthetic-0-x001"]
    assert [str(key) for key in sorted(map(SampleKey.parse, texts))] == [texts[2], texts[1], texts[3], texts[0]]
