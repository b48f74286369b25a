"""The checks of the acceptance run. Each module has a function `run`, which measures, asserts and reports."""
