"""The shard set on disk: manifest, tar shards with their index, sample keys, reading by offset."""
