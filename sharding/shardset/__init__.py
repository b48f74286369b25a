"""The shard set on disk: take samples, write shards, indices and the manifest, and read samples by offset."""
