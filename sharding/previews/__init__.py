"""Previews: take a shard set, return pictures of its pairs."""
