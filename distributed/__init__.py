"""Training: from a shard set to a run, on any number of processes, through Accelerate."""
