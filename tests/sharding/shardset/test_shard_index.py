import pytest

from upfield.common.errors import ShardSetError
from upfield.sharding.shardset.shard_index import ShardEntry, parse_fitting_index, read_index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this file is not a shard index"),
        ("v1.1 0\n", "expected 'v1.2 0' as the first line, found 'v1.1 0'"),
        ("v1.2 2\nlow.npy 512 9 a.low.npy\n", "expected 'v1.2 1' as the first line, found 'v1.2 2'"),
        ("v1.2 1\nlow.npy 512 9 a.low.npy\n", "do not list the members low.npy, high.npy, json"),
        ("v1.2 1\nlow.npy x 9 a.low.npy high.npy 9 9 a.high.npy json 9 9 a.json\n", "not whole numbers"),
        (f"v1.2 1\nlow.npy {2**70} 9 a.low.npy high.npy 9 9 a.high.npy json 9 9 a.json\n", "not whole numbers"),
    ],
)
def test_a_damaged_index_is_refused_with_its_path(tmp_path, text, message):
    (tmp_path / "a.idx").write_text(text)
    with pytest.raises(ShardSetError, match=message) as caught:
        read_index(tmp_path / "a.idx")
    assert str(caught.value).startswith(f"{tmp_path / 'a.idx'}: ")


@pytest.mark.parametrize(
    ("offset", "num_samples", "num_bytes", "message"),
    [
        (513, 1, 10240, "does not fit its tar of 10240 bytes"),
        (512, 1, 2048, "does not fit its tar of 2048 bytes"),
        (512, 2, 10240, "expected 2 samples as in the manifest, found 1"),
    ],
)
def test_an_index_that_does_not_follow_its_tar_is_refused(offset, num_samples, num_bytes, message):
    text = f"v1.2 1\nlow.npy {offset} 9 a.low.npy high.npy 1536 9 a.high.npy json 2560 9 a.json\n".encode()
    entry = ShardEntry("train/000000", num_samples, num_bytes, "")
    with pytest.raises(ShardSetError, match=rf"^a.idx: .*{message}"):
        parse_fitting_index(text, "a.idx", entry)
