"""Find the subjects of the configured cohorts, and read and check their headers before any voxel is read."""
