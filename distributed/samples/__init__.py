"""Batches of a shard set, in an order that is a pure function of seed, epoch, groups and mix.

Read the files in this order:

    groups          the number of groups to which the shards are dealt
    sample_classes  the kind or the cohort of each sample
    mixture         the class of each position of a global batch
    order           the samples of each global batch, and the shards that hold them
    reader          batches of these samples, read by offset
    degrade         random degradation of a low field
    augment         random augmentation of a pair
    splits          the training split and the validation split
    look_ahead      requests for single samples of a remote set before they are needed
    fetcher         threads that download shards before their samples are needed
    validation_batches   batches of the validation split

The reader `webdataset` has another order:

    webdataset_stream       samples of shards, streamed through the webdataset library
    webdataset_reader       batches of these samples

    sources         the batches of the configured reader
"""
