"""Takes cohort configurations; gives the subjects found, checked before a voxel is read."""
