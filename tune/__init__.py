"""Takes a training configuration and a search space; gives a sweep's table and its best run, through Ray Tune."""
