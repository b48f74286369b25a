"""Takes a shard set; gives batches in an order that is a pure function of seed and epoch."""
