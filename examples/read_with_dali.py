"""Read a shard set with NVIDIA DALI: python examples/read_with_dali.py SHARDS

`SHARDS` is a folder that `upfield shard` wrote. The `.idx` file beside each tar is an index for DALI, which would
otherwise have to read each tar once before it starts. Install DALI with `pip install nvidia-dali-cuda120` (or
`cuda130`). You do not need a GPU: version 2.4 was tested on a CPU.
"""

import sys
from pathlib import Path

from nvidia.dali import fn, pipeline_def, types

tars = sorted(str(path) for path in Path(sys.argv[1], "train").glob("*.tar"))
indices = [tar.removesuffix(".tar") + ".idx" for tar in tars]


@pipeline_def(batch_size=4, num_threads=2, device_id=None)
def read_pairs():
    pair = fn.readers.webdataset(paths=tars, index_paths=indices, ext=["low.npy", "high.npy"], random_shuffle=True)
    return tuple(fn.decoders.numpy(member, dtype=types.FLOAT16) for member in pair)


print([(images.shape(), images.dtype) for images in read_pairs().run()])
