"""Compare the synthetic low field of a shard set with real low-field scans: set and scans in, tables out."""
