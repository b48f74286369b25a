"""Takes files of MRI volumes; gives voxels with their place in the world, on any grid, in [0, 1]."""
