"""S3's endpoint, region and credentials come from Amazon's variables and files, and never from the address."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from faulty import FaultyServer

from upfield.common.errors import InputError
from upfield.common.stores.amazon import amazon_options, find_region
from upfield.common.stores.store import Store

CONFIG = """
[default]
region = eu-west-3
[profile lab]
region = eu-central-1
endpoint_url = https://general.example
services = own
[profile login]
credential_process = /bin/false
[services own]
s3 =
  endpoint_url = https://s3.example
[profile virtual]
endpoint_url = https://s3.example
s3 =
  addressing_style = virtual
[profile strict]
use_fips_endpoint = true
"""
CREDENTIALS = "[lab]\naws_access_key_id = lab-key\naws_secret_access_key = lab-secret\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: FaultyServer) -> Path:
    """A home folder without files. No variable of Amazon is set but the endpoint of the server `s3`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def profiles(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (home / ".aws").mkdir()
    (home / ".aws/config").write_text(CONFIG)
    (home / ".aws/credentials").write_text(CREDENTIALS)
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    return home


def test_requests_are_signed_with_the_keys_of_the_profile(
    profiles: Path, s3: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    assert Store("s3://sets/tiny").read("manifest.json") is not None
    assert "Credential=lab-key/" in s3.last_headers["Authorization"]
    assert "/eu-central-1/s3/" in s3.last_headers["Authorization"]


def test_without_any_credentials_requests_are_not_signed(home: Path, s3: FaultyServer) -> None:
    with pytest.raises(InputError, match=r"permission denied .*no credentials were found"):
        Store("s3://sets/tiny").read("manifest.json")
    s3.answer = lambda path, headers: (200, {}, b"public")
    assert Store("s3://sets/tiny").read("manifest.json") == b"public"
    assert "Authorization" not in s3.last_headers


def test_the_endpoint_comes_from_variables_then_from_the_profiles_services_then_from_the_profile(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert amazon_options("s3://b", "b")["config"] == {"region": "eu-central-1", "endpoint": "https://s3.example"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://variable.example")
    assert amazon_options("s3://b", "b")["config"]["endpoint"] == "https://variable.example"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_PROFILE", "virtual")
    assert amazon_options("s3://b", "b")["config"]["endpoint"] == "https://b.s3.example"


def test_an_endpoint_without_a_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(InputError, match=r"^s3://b: the endpoint 127\.0\.0\.1:9000 has no scheme\."):
        amazon_options("s3://b", "b")


def test_keys_in_variables_come_before_those_in_files_but_the_region_of_the_file_counts(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    assert amazon_options("s3://b", "b") == {"config": {"region": "eu-west-3"}}


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("absent", r"the AWS profile cannot be used \(.*absent.*\)\. Check AWS_PROFILE"),
        ("login", r"permission denied .*/bin/false|the AWS profile cannot be used \(.*\)\. Check AWS_PROFILE"),
        ("strict", r"the setting use_fips_endpoint of AWS is not supported\. "),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(
    profiles: Path, monkeypatch: pytest.MonkeyPatch, profile: str, said: str
) -> None:
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(InputError, match=rf"^s3://sets/tiny: ({said})"):
        Store("s3://sets/tiny").read("manifest.json")


def test_the_package_that_reads_profiles_may_be_missing(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(InputError, match=r"the package that reads AWS profiles is missing .*'upfield\[s3\]'"):
        amazon_options("s3://b", "b")


def test_amazon_names_the_region_of_a_bucket_even_if_it_denies_access() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("x-amz-bucket-region", "ap-south-1")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert find_region("bucket", f"http://127.0.0.1:{server.server_port}") == "ap-south-1"
        thread.join()
    assert find_region("bucket", "http://127.0.0.1:9") is None
