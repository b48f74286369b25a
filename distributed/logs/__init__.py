"""The log of a run: written during training, and read by evaluation and sweeps."""
