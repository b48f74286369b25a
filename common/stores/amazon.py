"""Where an S3 bucket is and with which credentials it is read, as Amazon's own tools would decide it.

obstore reads the `AWS_*` variables. It does not read profiles (`~/.aws`) and what they name, such as roles, logins and
programs. botocore reads these, as it does for Amazon's own tools and for s3fs.
"""

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from upfield.common.addresses import format_address
from upfield.common.errors import InputError
from upfield.common.stores.store_errors import describe_error

# botocore renews temporary credentials at least ten minutes before they expire.
LIFETIME = timedelta(minutes=9)
FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
UNSUPPORTED = ("use_fips_endpoint", "use_dualstack_endpoint", "ignore_configured_endpoint_urls")
FIND_REGION_S = 10.0


def amazon_options(address: str, bucket: str) -> dict[str, Any]:
    """Return the arguments of `obstore.store.S3Store` that name the endpoint, the region and the credentials.

    Args:
        address: address for error messages.
        bucket: name of the bucket.

    Raises:
        InputError: the profile does not exist or cannot be used, or the package that reads it is missing.
    """
    has_keys = all(os.environ.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    has_files = "AWS_PROFILE" in os.environ or any(
        Path(os.environ.get(variable, default)).expanduser().exists() for variable, default in FILES.items()
    )
    session = None if has_keys and not has_files else _open_session(address, has_files)
    if session is None:
        return {"config": _find_store(address, bucket, {}, {})}
    with _profile_errors(address):
        profile = session.get_scoped_config()
        services = session.full_config.get("services", {}).get(profile.get("services"), {})
        config = _find_store(address, bucket, profile, services.get("s3", {}))
        if has_keys or _is_true(os.environ.get("AWS_SKIP_SIGNATURE")):
            return {"config": config}
        credentials = session.get_credentials()
    if credentials is None:
        # The bucket may be public. If it is not, the store says that access is denied.
        return {"config": config | {"skip_signature": True}}
    return {"config": config, "credential_provider": _renew(credentials)}


def _find_store(address: str, bucket: str, profile: dict[str, Any], service: dict[str, Any]) -> dict[str, Any]:
    for name in UNSUPPORTED:
        if _is_true(os.environ.get(f"AWS_{name.upper()}") or profile.get(name)):
            raise InputError(
                f"{format_address(address)}: the setting {name} of AWS is not supported. "
                "Remove it, and set AWS_ENDPOINT_URL_S3 to the endpoint that you need."
            )
    endpoint = _first(ENDPOINTS) or service.get("endpoint_url") or profile.get("endpoint_url")
    region = _first(REGIONS) or profile.get("region")
    if endpoint and not endpoint.lower().startswith(("http://", "https://")):
        # obstore would panic.
        raise InputError(
            f"{format_address(address)}: the endpoint {endpoint} has no scheme. "
            "Write it with https:// in AWS_ENDPOINT_URL, or in the profile."
        )
    if not endpoint:
        return {"region": region or find_region(bucket) or "us-east-1"}
    config = {"region": region or "us-east-1", "endpoint": endpoint}
    if _first(("AWS_ENDPOINT_URL_S3",)):
        config["aws_endpoint_url_s3"] = endpoint
    if profile.get("s3", {}).get("addressing_style") == "virtual":
        scheme, _, host = endpoint.partition("://")
        config |= {"endpoint": f"{scheme}://{bucket}.{host}", "virtual_hosted_style_request": True}
    return config


def find_region(bucket: str, url: str = "https://s3.amazonaws.com") -> str | None:
    """Ask Amazon for the region of a bucket. Return None if there is no answer. No credentials are needed."""
    request = urllib.request.Request(f"{url}/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=FIND_REGION_S) as answer:
            return answer.headers.get("x-amz-bucket-region")
    except urllib.error.HTTPError as error:
        with error:
            return error.headers.get("x-amz-bucket-region")
    except OSError:
        return None


def _open_session(address: str, has_files: bool) -> Any:
    """Return botocore's session, or None if there are no files to read and botocore is not installed."""
    try:
        import botocore.session
    except ImportError as error:
        if not has_files:
            return None  # obstore itself asks for the role of the container or the machine.
        raise InputError(
            f"{format_address(address)}: the package that reads AWS profiles is missing ({error}). "
            "Run pip install 'upfield[s3]'."
        ) from error
    return botocore.session.Session()


def _renew(credentials: Any) -> Callable[[], dict[str, Any]]:
    def provide() -> dict[str, Any]:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + LIFETIME,
        }

    return provide


@contextmanager
def _profile_errors(address: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise InputError(
            f"{format_address(address)}: the AWS profile cannot be used ({describe_error(error)}). "
            "Check AWS_PROFILE and the files in ~/.aws."
        ) from error


def _first(variables: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true", "yes", "on")
