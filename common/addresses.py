"""Addresses of remote stores, told from paths of this machine and shown without passwords."""

import re

# A path that was made of an address has one of its two slashes left.
ADDRESS = re.compile(r"([A-Za-z][\w.+:-]+):/")
LOCAL = ("file", "local")


def is_address(place: str) -> bool:
    """Tell whether `place` has the form of an address, of this machine's files or others."""
    return ADDRESS.match(place) is not None


def is_remote(place: str) -> bool:
    """Tell whether `place` is the address of anything but local files."""
    found = ADDRESS.match(place)
    return found is not None and found[1] not in LOCAL


def format_address(address: str) -> str:
    """Give an address with both slashes and without its password."""
    return re.sub(r"(?<=://)[^/@:]*:[^/@]*@", "", re.sub(r"(?<=:)/(?!/)", "//", address, count=1))
