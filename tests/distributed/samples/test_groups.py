"""The number of groups is chosen from the batch size, and a job says what it means for its nodes."""

import pytest

from upfield.distributed.configuration import DataConfig
from upfield.distributed.samples.groups import default_groups, describe_groups, ranks_of_node


@pytest.mark.parametrize(
    ("batch_size", "window_shards", "expected"),
    [
        (4, 16, 4),
        (256, 16, 16),
        (48, 16, 16),
        (24, 16, 8),
        (15, 16, 15),
        (45, 16, 15),
        (7, 4, 1),
        (1, 16, 1),
        (8, 5, 4),
    ],
)
def test_the_default_for_an_address_divides_the_batch_and_fits_the_window(
    batch_size: int, window_shards: int, expected: int
) -> None:
    data = DataConfig("s3://bucket/set", batch_size=batch_size, window_shards=window_shards)
    assert default_groups(data, is_remote=True) == expected
    assert default_groups(data, is_remote=False) == 1


def test_a_number_in_the_configuration_replaces_the_default() -> None:
    data = DataConfig("set", batch_size=6, groups=3)
    assert [default_groups(data, is_remote) for is_remote in (False, True)] == [3, 3]


@pytest.mark.parametrize(
    ("groups", "batch_size", "nodes", "expected"),
    [
        (16, 64, 1, "this node reads all of them"),
        (16, 64, 4, "each of the 4 nodes downloads the shards of 4"),
        (16, 48, 3, "together they download 1.12 times the set. Choose --data.groups 12"),
        (16, 64, 32, "together they download 2.00 times the set. Choose --data.groups 32"),
    ],
)
def test_a_job_says_what_its_nodes_download(groups: int, batch_size: int, nodes: int, expected: str) -> None:
    assert expected in describe_groups(groups, DataConfig("set", batch_size=batch_size), nodes)


def test_single_samples_are_never_downloaded_twice() -> None:
    data = DataConfig("s3://bucket/set", batch_size=64, fetch="samples")
    assert describe_groups(16, data, 32).endswith("each process downloads only the samples that it reads (data.fetch)")


def test_the_ranks_of_a_node_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [ranks_of_node(rank, 8) for rank in (0, 3, 5)] == [range(4), range(4), range(4, 8)]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert ranks_of_node(5, 8) == range(8)
