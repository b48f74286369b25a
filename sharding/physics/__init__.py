"""Simulate low-field scans by physics: a noise-free signal on the high-field grid in, a low-field scan out."""
