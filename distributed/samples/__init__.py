"""Takes a shard set; gives batches in an order that is a pure function of seed and epoch.

Read the files in this order:

    order           which samples an epoch visits, and in which order
    reader          batches of these samples, read by offset
    augment         random changes of a pair
    splits          the set that a configuration names, in a folder or at an address
    remote_files    downloads from a remote set, with retries and checks
    cache           the folder of downloaded shards that all processes of a node share
    fetcher         threads that download shards before their samples are needed
"""
