"""From a training configuration and a search space to a table of results and the best run, with Ray Tune."""
