"""Training of a network on a shard set, on any number of processes, through Accelerate."""
