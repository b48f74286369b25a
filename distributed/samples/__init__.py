"""Batches of a shard set, in an order that is a pure function of seed and epoch.

Read the files in this order:

    order           the order in which an epoch visits the samples
    reader          batches of these samples, read by offset
    augment         random augmentation of a pair
    splits          the splits of the configured shard set, in a folder or at an address
    remote_files    downloads from a remote set, with retries and checks
    cache           the folder of downloaded shards that all processes of a node share
    fetcher         threads that download shards before their samples are needed
"""
