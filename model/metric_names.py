"""Names of metrics: which of them are better if they are lower. Nothing heavy is imported here."""

# Starts of the names of errors. All other metrics are similarities.
ERRORS = ("mae", "nrmse")


def is_error(name: str) -> bool:
    """Return whether lower values of a metric are better."""
    return name.startswith(ERRORS)
