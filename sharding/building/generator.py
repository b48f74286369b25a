"""Random generators whose numbers depend on names and not on the order of work."""

import hashlib

import numpy as np


def generator_for(seed: int, *names: object) -> np.random.Generator:
    """Return a generator that depends only on the seed and the names, not on the order of work."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *names))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
