"""Read, orient, resample, normalise and write MRI volumes, and keep track of their position in the world."""
