"""Simulate low-field scans by physics: relaxation, sequence and acquisition. High-field signal in, low-field scan out."""
