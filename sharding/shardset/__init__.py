"""The shard set on disk: write samples as shards with index and manifest, and read samples by their offsets."""
