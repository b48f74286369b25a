"""Takes a shard set; gives a trained run: order, reader, loop, validation and checkpoints, through Accelerate."""
