"""Gives heads of varied anatomy, made from a template."""
