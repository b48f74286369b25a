"""What must be in order before the service's libraries are imported."""

import os
import secrets
from importlib.util import find_spec

from upfield.common.errors import InputError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def prepare_environment(has_own_ray: bool) -> None:
    """Check for the packages that only the service needs, and set the variables that Ray reads when it is imported.

    Args:
        has_own_ray: whether the service starts Ray, instead of connecting to a cluster.

    Raises:
        InputError: a package is missing.
    """
    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        raise InputError(f"The service needs {', '.join(missing)}. Run pip install 'upfield[serve]'.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if has_own_ray:
        # Ray listens on all addresses of the machine; without this token, nobody else can give it work.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
