"""Phantom heads: take a template, return cohorts of scans with varied anatomy."""
