"""Read a shard set with the webdataset library: python examples/read_with_webdataset.py SHARDS

`SHARDS` is a folder that `upfield shard` wrote. Instead of a list of tars, `WebDataset` also accepts an
address with braces, such as `https://host/set/train/{000000..000157}.tar`, and then downloads the shards with `curl`.
"""

import sys
from pathlib import Path

import webdataset as wds

if len(sys.argv) != 2:
    sys.exit(__doc__)
tars = sorted(str(path) for path in Path(sys.argv[1], "train").glob("*.tar"))
samples = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode(only=["low.npy", "high.npy", "json"])
for low, high, record in samples.to_tuple("low.npy", "high.npy", "json").slice(4):
    print(record["subject"], record["slice"], low.shape, high.shape, low.dtype)
