"""Checks and environment variables that must precede the import of the service's libraries."""

import os
import secrets
from importlib.util import find_spec

from upfield.common.errors import InputError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def prepare_environment(has_own_ray: bool) -> None:
    """Check that the service's optional packages are installed, and set the variables that Ray reads on import.

    Args:
        has_own_ray: whether the service starts its own Ray instead of connecting to a cluster.

    Raises:
        InputError: a package is missing.
    """
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        raise InputError(f"The service needs {', '.join(missing)}. Run pip install 'upfield[serve]'.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if has_own_ray:
        # Ray listens on all addresses of the machine. This token keeps others from submitting work to it.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
