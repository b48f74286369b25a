"""Batches of a shard set, in an order that is a pure function of seed and epoch.

Read the files in this order:

    order           the order in which an epoch visits the samples
    reader          batches of these samples, read by offset
    augment         random augmentation of a pair
    splits          the training split and the validation split
    fetcher         threads that download shards before their samples are needed

The reader `webdataset` has another order:

    webdataset_stream       samples of shards, streamed through the webdataset library
    webdataset_reader       batches of these samples

    sources         the batches of the configured reader
"""
