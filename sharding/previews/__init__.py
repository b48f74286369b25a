"""Takes a shard set; gives pictures of its pairs."""
