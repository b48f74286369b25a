"""Take subjects with checked headers, write their shards, and complete, seal and upload the shard set."""
