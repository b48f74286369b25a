"""Takes strips of slices from several scans and restores them in shared batches, in processes on Ray Serve."""
