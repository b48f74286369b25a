"""Takes a training configuration and a search space; trains its points with Ray Tune, and finds the best run."""
