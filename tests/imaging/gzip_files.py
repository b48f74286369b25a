"""Plain and gzip files that tests write: two contents of equal length, and two ways to compress them."""

import gzip
import struct

import numpy as np

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
OTHER = CONTENT[:1_500_000] + b"\0" + CONTENT[1_500_001:]


def compressed(path, content, level=6, mtime=0):
    path.write_bytes(gzip.compress(content, level, mtime=mtime))
    return path


def plain(path, content):
    path.write_bytes(content)
    return path


def blocked(path, content):
    """Write blocked gzip: members of at most 64 KiB with their lengths in an extra field, and an empty last member."""
    with path.open("wb") as file:
        for first in [*range(0, len(content), 60_000), len(content)]:
            member = gzip.compress(content[first : first + 60_000], mtime=0)
            extra = b"BC" + struct.pack("<HH", 2, len(member) + 8 - 1)
            file.write(member[:3] + b"\x04" + member[4:10] + struct.pack("<H", len(extra)) + extra + member[10:])
    return path
