"""Check a shard set, in a folder or at an address, against its manifest and indices: manifest in, problems out."""
