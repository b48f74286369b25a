"""Takes strips of slices from several scans; restores them in shared batches, in processes on Ray Serve."""
