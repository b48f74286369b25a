"""From cohort configurations to subjects whose headers have been read and checked, before any voxel is read."""
