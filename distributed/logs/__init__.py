"""The log of a run, which training writes and which evaluation and sweeps read."""
