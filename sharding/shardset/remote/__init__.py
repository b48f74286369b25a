"""A shard set at an address: download its shards into the node's cache, or single samples into memory."""
