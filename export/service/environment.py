"""Checks and environment variables that must precede the import of the service's libraries."""

import os
import secrets
from importlib.util import find_spec

from upfield.common.environment.settling import SET_FOR_RAY
from upfield.common.errors import InputError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def expect_packages() -> None:
    """Raise InputError if an optional package that the service needs is not installed."""
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        raise InputError(f"The service needs {', '.join(missing)}. Run pip install 'upfield[serve]'.")


def set_ray_variables(has_own_ray: bool) -> None:
    """Set the environment variables that Ray reads when it is imported.

    Args:
        has_own_ray: whether the service starts its own Ray instead of connecting to a cluster.
    """
    os.environ |= SET_FOR_RAY
    if has_own_ray:
        # Ray listens on all addresses of the machine. This token keeps others from submitting work to it.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
