"""Validations of a run: the quality of its slices, and its best model."""
