"""Takes scans and a model file; writes enhanced scans with their provenance."""
