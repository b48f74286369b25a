"""Take subjects whose headers have been checked, and write a complete shard set to a folder or a remote store."""
