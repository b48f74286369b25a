"""Previews: take a shard set, and return pictures of its pairs."""
