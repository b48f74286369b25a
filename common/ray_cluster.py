"""Connect to Ray for shard building, sweeps and the service."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from upfield.common.environment.settling import SET_FOR_RAY
from upfield.common.errors import InputError, RunError

CONNECT_TIMEOUT_S = 10


def connect_ray(address: str | None = None, **options: Any) -> None:
    """Connect to a Ray cluster, or start Ray on this machine.

    Without an address, this function uses the cluster that RAY_ADDRESS names, or else a cluster that runs on this
    machine. If there is none, it starts Ray on this machine.

    Ray tries for many minutes to reach a cluster that no longer runs, whose address may still be in Ray's folder. So
    this function first checks within seconds that something listens at the address.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, `auto` for a cluster that runs on this machine, or `local` to start Ray
            on this machine even if a cluster already runs there.
        options: further arguments of `ray.init`.

    Raises:
        InputError: no cluster answers at `address` or at RAY_ADDRESS.
        RunError: Ray cannot start on this machine.
    """
    os.environ |= SET_FOR_RAY
    import ray

    named = address or os.environ.get("RAY_ADDRESS", "")
    try:
        running = None if named == "local" else _listening_address(named)
        if not (running or named.removeprefix("local")):
            set_own_token()
        ray.init(
            named or running or "local",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            **options,
        )
    except Exception as error:  # If Ray times out while it starts, it raises a bare Exception.
        if named in ("", "local"):
            message = f"Ray cannot start on this machine: {type(error).__name__}: {error}".rstrip(".")
            raise RunError(
                f"{message}. Fix the cause (RAY_TMPDIR names the folder of Ray's files), or use a running cluster."
            ) from error
        source, way_out = ("--address", "leave it out") if address else ("RAY_ADDRESS", "unset it")
        raise InputError(
            f"{source}: cannot connect to a Ray cluster at {named}: {str(error).rstrip('.')}. Start the cluster, "
            f"correct the address, or {way_out} to use this machine."
        ) from error


@contextmanager
def explain_ray_errors(work: str) -> Iterator[None]:
    """Raise a RunError inside the `with` block if Ray fails, for example because memory ran out or a node was lost.

    Errors of our own code inside a task are raised as they are.

    Args:
        work: what Ray was doing, such as `a task`.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise (error.cause or error) from error
    except RayError as error:
        message = f"Ray could not finish {work}: {type(error).__name__}: {error}"
        raise RunError(f"{message.rstrip('.')}. Check the cluster and run the same command again.") from error


def set_own_token() -> None:
    """Protect the Ray that this process starts by a token of its own, unless the user has chosen one.

    Ray listens on all addresses of the machine, and the token keeps others from submitting work to it. By default, Ray
    would write a token into the home folder.
    """
    if not any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        # `ray.init` chooses the mode by itself, because Ray has read its variable already.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray would warn that the token can be switched off, which nobody should do because of a sweep.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def _listening_address(named: str) -> str | None:
    """Resolve an address, which may be `auto` or empty, to `HOST:PORT`. Return None to start Ray on this machine.

    Raises:
        ConnectionError: `named` is an address, but no cluster runs there.
        ValueError: the address is malformed.
    """
    # This function of Ray is private. Ray has no public function that resolves `auto`, or finds the address that a
    # cluster left in Ray's folder, without connecting. Connecting to a cluster that no longer runs takes minutes.
    from ray._private.services import canonicalize_bootstrap_address

    resolved = canonicalize_bootstrap_address(named.removeprefix("ray://") or cast(Any, None))
    if named == "auto" and not resolved:
        raise ConnectionError("no cluster runs on this machine")
    if resolved and not _listens(resolved):
        if named:
            raise ConnectionError("nothing listens there")
        return None
    return resolved


def _listens(address: str) -> bool:
    """Return whether something listens at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):
        return False
    return True
