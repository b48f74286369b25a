"""Batches of a shard set, in an order that is a pure function of seed and epoch.

Read the files in this order:

    order           the order in which an epoch visits the samples
    reader          batches of these samples, read by offset
    augment         random augmentation of a pair
    splits          the training split and the validation split
    look_ahead      requests for single samples of a remote set before they are needed
    fetcher         threads that download shards before their samples are needed
"""
