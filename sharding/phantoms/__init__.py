"""Phantom heads: take a template, and write cohorts of scans with varied anatomy."""
