"""Tell the addresses of remote stores from local paths, and format them for messages."""

import re

# One slash is enough, because `Path` collapses the two slashes of an address.
ADDRESS = re.compile(r"([A-Za-z][\w.+:-]+):/")
LOCAL = ("file", "local")
# The library webdataset runs what follows as a command. Such an item may stand in a list of shards.
PIPE = re.compile(r"(?:^|[{,]|::)\s*pipe:", re.IGNORECASE)


def is_address(place: str) -> bool:
    """Return whether `place` has the form of an address, such as `s3://bucket/set` or `file:///data`."""
    return ADDRESS.match(place) is not None


def is_remote(place: str) -> bool:
    """Return whether `place` is an address outside this machine's file system."""
    match = ADDRESS.match(place)
    return match is not None and match[1] not in LOCAL


def format_address(address: str) -> str:
    """Return an address in the form for messages: with both slashes, and without its password or signature."""
    address = re.sub(r"(?<=:)/(?!/)", "//", address, count=1)
    if re.match(r"https?://", address, re.IGNORECASE):
        # A user's name without a password may be a token, and signatures follow a question mark.
        return re.sub(r"(?<=://)[^/@]*@", "", re.split(r"[?#]", address, maxsplit=1)[0])
    return re.sub(r"(?<=://)[^/@:]*:[^/@]*@", "", address)


def runs_command(place: str) -> bool:
    """Return whether `place` is a command, such as `pipe:cat shard.tar`, or a list of shards that contains one."""
    return PIPE.search(place) is not None
