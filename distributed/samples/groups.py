"""The number of groups, and what it means for the nodes of a job."""

import os

from upfield.common.addresses import is_remote
from upfield.distributed.configuration import DataConfig, divisors_of


def default_groups(data: DataConfig, is_remote: bool) -> int:
    """Return the configured number of groups, or the default for this batch size and place of the set."""
    if data.groups is not None:
        return data.groups
    if not is_remote or data.reader == "webdataset":
        return 1
    fitting = [number for number in divisors_of(data.batch_size) if number <= data.window_shards]
    if data.batch_size % 2:
        return fitting[-1]
    return max(number for number in fitting if number & (number - 1) == 0)


def count_nodes(world_size: int) -> int:
    """Return the number of nodes of this job, all of which have as many processes as this one."""
    return max(1, world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))


def ranks_of_node(rank: int, world_size: int) -> range:
    """Return the ranks of this process's node, which are neighbours."""
    per_node = world_size // count_nodes(world_size)
    return range(rank // per_node * per_node, (rank // per_node + 1) * per_node)


def describe_groups(groups: int, data: DataConfig, nodes: int) -> str:
    """Return a sentence about the number of groups: what each node downloads, and which number is better."""
    parts = f"{groups} group{'s' if groups > 1 else ''} of shards (data.groups)"
    if nodes == 1:
        return f"{parts}; this node reads all of them"
    if is_remote(str(data.shards)) and data.fetch == "samples":
        return f"{parts}; each process downloads only the samples that it reads (data.fetch)"
    if groups % nodes == 0:
        return f"{parts}; each of the {nodes} nodes downloads the shards of {groups // nodes}"
    # Node n reads the groups from n * groups / nodes to (n + 1) * groups / nodes.
    downloads = sum(-(-(node + 1) * groups // nodes) - node * groups // nodes for node in range(nodes))
    better = [number for number in divisors_of(data.batch_size) if number % nodes == 0]
    fitting = [number for number in better if number <= data.window_shards]
    advice = f". Choose --data.groups {fitting[-1] if fitting else better[0]} to avoid this" if better else ""
    return (
        f"{parts} do not divide evenly among {nodes} nodes, so nodes share groups, and together they "
        f"download {downloads / groups:.2f} times the set{advice}"
    )
