"""Takes subjects; gives a finished shard set: planned, written, sealed and uploaded."""
