"""Open the object stores and web servers that obstore knows, as each cloud's own tools would open them.

obstore itself reads the variables of each cloud (`AWS_*`, `GOOGLE_*`, `AZURE_*`). Amazon's profiles, Google's other
kinds of credentials and Azure's logins are read by a package of the cloud, if it is installed. No address holds a
password.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from upfield.common.addresses import format_address
from upfield.common.errors import InputError
from upfield.common.stores.amazon import amazon_options
from upfield.common.stores.store_errors import bad_address, describe_error

CERTIFICATES = ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
CONNECT_S = "20s"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# With one of these variables, obstore needs no other credentials.
GOOGLE_KEYS = ("SERVICE_ACCOUNT", "BEARER_TOKEN", "SKIP_SIGNATURE")
AZURE_KEYS = ("KEY", "SAS", "TOKEN", "SECRET", "MSI", "SKIP_SIGNATURE", "EMULATOR", "AZURE_CLI", "CREDENTIAL_TYPE")


@dataclass(frozen=True)
class ObjectAddress:
    """The parts of an address."""

    scheme: str
    """Text before `://`."""
    bucket: str
    """Bucket, container or host."""
    folder: str
    """Folder in it, without slashes at its ends."""
    account: str | None = None
    """Storage account, in the addresses of Azure that name one."""

    @property
    def root(self) -> str:
        """Bucket and folder, without a slash at the end."""
        return f"{self.bucket}/{self.folder}".strip("/")


@dataclass(frozen=True)
class Patience:
    """How long and how often obstore tries a request."""

    retries: int
    """How often a request that fails is repeated."""
    read_timeout_s: float | None
    """Time in seconds after which a request fails if no byte arrives; None for no limit."""

    def options(self, allow_http: bool) -> Any:
        """Return the options of obstore's client, with the certificates that the user trusts.

        Args:
            allow_http: whether the endpoint needs no encryption.
        """
        # By default, obstore ends every transfer after 30 seconds, even one that makes progress.
        client: dict[str, Any] = {"allow_http": allow_http, "timeout": "365days", "connect_timeout": CONNECT_S}
        if self.read_timeout_s is not None:
            client["read_timeout"] = f"{round(self.read_timeout_s * 1000)}ms"
        variable = next((name for name in CERTIFICATES if os.environ.get(name)), None)
        if variable:
            client["root_certificate"] = _read_certificates(variable, Path(os.environ[variable]))
        return {"client_options": client, "retry_config": {"max_retries": self.retries}}


def parse_address(address: str) -> ObjectAddress:
    """Split an address. Azure's may be `az://container/folder` or `az://container@account.host/folder`.

    Examples:
        >>> parse_address("abfs://scans@lab.dfs.core.windows.net/sets/a")
        ObjectAddress(scheme='abfs', bucket='scans', folder='sets/a', account='lab')
    """
    scheme, _, rest = address.partition("://")
    bucket, _, folder = rest.partition("/")
    account = None
    if scheme in AZURE and "@" in bucket:
        bucket, _, host = bucket.partition("@")
        account = host.partition(".")[0]
    return ObjectAddress(scheme, bucket, folder.strip("/"), account)


def open_object_store(address: str, retries: int, read_timeout_s: float | None) -> Any:
    """Open a folder at an address with obstore.

    Args:
        address: address of the folder.
        retries: how often obstore repeats a request that fails.
        read_timeout_s: time in seconds after which a request fails if no byte arrives; None for no limit.

    Raises:
        InputError: the address is not valid, the credentials cannot be read, or a package is missing.
    """
    from obstore.exceptions import BaseError

    parts = parse_address(address)
    if not parts.bucket:
        raise InputError(
            f"{format_address(address)}: the address names no bucket or folder. Choose one such as s3://bucket/set."
        )
    try:
        return SCHEMES[parts.scheme](address, parts, Patience(retries, read_timeout_s))
    except InputError:
        raise
    except (BaseError, ValueError) as error:
        # obstore adds pages of details to some texts.
        raise bad_address(address, ValueError(str(error).partition("\n\n")[0])) from error


def _open_amazon(address: str, parts: ObjectAddress, patience: Patience) -> Any:
    from obstore.store import S3Store

    options = amazon_options(address, parts.bucket)
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "")
    if patience.retries and attempts.isdecimal():
        patience = replace(patience, retries=max(0, int(attempts) - 1))
    http = options["config"].get("endpoint", "").startswith("http:")
    return S3Store(parts.bucket, prefix=parts.folder or None, **patience.options(http), **options)


def _open_google(address: str, parts: ObjectAddress, patience: Patience) -> Any:
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    options: dict[str, Any] = {"config": {"base_url": emulator, "skip_signature": True}} if emulator else {}
    if not emulator and not _has_variable("GOOGLE_", GOOGLE_KEYS):
        options = _google_credentials(address)
    http = emulator.startswith("http:")
    return GCSStore(parts.bucket, prefix=parts.folder or None, **patience.options(http), **options)


def _google_credentials(address: str) -> dict[str, Any]:
    """Return the credentials that google-auth finds. Without that package, obstore reads the most usual kinds."""
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from obstore.auth.google import GoogleCredentialProvider
    except ImportError:
        return {}
    try:
        credentials, _ = google.auth.default(scopes=[GOOGLE_SCOPE])
    except DefaultCredentialsError as error:
        if "GOOGLE_APPLICATION_CREDENTIALS" in os.environ:
            raise InputError(
                f"{format_address(address)}: the credentials of Google cannot be read ({describe_error(error)}). "
                "Check GOOGLE_APPLICATION_CREDENTIALS."
            ) from error
        # The bucket may be public. If it is not, the store says that access is denied.
        return {"config": {"skip_signature": True}}
    return {"credential_provider": GoogleCredentialProvider(credentials)}


def _open_azure(address: str, parts: ObjectAddress, patience: Patience) -> Any:
    from obstore.store import AzureStore

    config: Any = {"account_name": parts.account} if parts.account else {}
    options: dict[str, Any] = {}
    if not parts.account and not _has_variable("AZURE_", ("STORAGE_ACCOUNT_NAME", "EMULATOR")):
        raise InputError(
            f"{format_address(address)}: no storage account is named. "
            "Set AZURE_STORAGE_ACCOUNT_NAME, or write abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER."
        )
    if not _has_variable("AZURE_", AZURE_KEYS):
        try:
            from obstore.auth.azure import AzureCredentialProvider

            options["credential_provider"] = AzureCredentialProvider()
        except ImportError:  # Without azure-identity, obstore runs `az`, or asks for the role of the machine.
            if shutil.which("az") and Path(os.environ.get("AZURE_CONFIG_DIR", "~/.azure")).expanduser().exists():
                config["use_azure_cli"] = True
    endpoint = next(
        (os.environ[name] for name in ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT") if name in os.environ), ""
    )
    http = endpoint.startswith("http:")
    return AzureStore(parts.bucket, prefix=parts.folder or None, config=config, **patience.options(http), **options)


def _open_web(address: str, parts: ObjectAddress, patience: Patience) -> Any:
    from obstore.store import HTTPStore

    urlsplit(address).port  # noqa: B018 - raises ValueError if it is not a number
    return HTTPStore.from_url(address, **patience.options(parts.scheme == "http"))


def _read_certificates(variable: str, path: Path) -> bytes:
    with suppress(OSError):
        data = path.read_bytes()
        if b"BEGIN CERTIFICATE" in data:
            return data
    raise InputError(f"{variable}: {path} holds no certificates in PEM format. Correct the variable, or remove it.")


def _has_variable(start: str, parts: tuple[str, ...]) -> bool:
    return any(name.startswith(start) and any(part in name for part in parts) for name in os.environ)


Open = Callable[[str, ObjectAddress, Patience], Any]
AZURE = ("az", "abfs", "abfss")
SCHEMES: dict[str, Open] = dict.fromkeys(("s3", "s3a"), _open_amazon)
SCHEMES |= dict.fromkeys(("gs", "gcs"), _open_google)
SCHEMES |= dict.fromkeys(AZURE, _open_azure)
SCHEMES |= dict.fromkeys(("http", "https"), _open_web)
