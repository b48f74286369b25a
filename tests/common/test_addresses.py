"""Addresses differ from paths, and messages show them without passwords."""

import pytest

from upfield.common.addresses import format_address, is_address, is_remote


@pytest.mark.parametrize("out", ["s3://bucket/set", "gs://bucket", "memory://set", "simplecache::s3://bucket/set"])
def test_urls_are_remote(out: str) -> None:
    assert is_remote(out)


@pytest.mark.parametrize("out", ["shards", "/data/shards", "./s3:/x", "file:///data/shards", "a b://c", "C:/x"])
def test_paths_are_not_remote(out: str) -> None:
    assert not is_remote(out)


def test_a_local_address_is_an_address_and_not_remote() -> None:
    assert is_address("file:///data/shards")
    assert not is_address("data/shards")


def test_a_message_shows_both_slashes_and_no_password() -> None:
    assert format_address("s3:/user:secret@host/set") == "s3://host/set"
    assert format_address("s3://bucket/set") == "s3://bucket/set"
    assert format_address("https://host/set?token=secret") == "https://host/set"
    assert format_address("https://secret@host:80/a@b") == "https://host:80/a@b"
    assert (
        format_address("abfs://scans@lab.dfs.core.windows.net/set?1") == "abfs://scans@lab.dfs.core.windows.net/set?1"
    )
