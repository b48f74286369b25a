"""From subjects to a complete shard set: planned, written, sealed and uploaded."""
