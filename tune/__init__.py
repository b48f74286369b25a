"""Searches training configurations with Ray Tune: trains the points of a search space and finds the best run."""
