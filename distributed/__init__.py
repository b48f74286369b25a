"""Train a network on a shard set in any number of processes, with Accelerate."""
