"""Addresses of remote stores, told from paths of this machine and shown without passwords."""

import re

# A path that was made of an address has one of its two slashes left.
ADDRESS = re.compile(r"([A-Za-z][\w.+:-]+):/")
LOCAL = ("file", "local")


def is_remote(place: str) -> bool:
    """Tell whether `place` is the address of anything but local files."""
    found = ADDRESS.match(place)
    return found is not None and found[1] not in LOCAL


def shown(address: str) -> str:
    """Give an address without its password."""
    return re.sub(r"://[^/@:]*:[^/@]*@", "://", address)
