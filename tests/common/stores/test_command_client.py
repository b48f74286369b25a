"""A command that the user names downloads files: without a shell, and with its failures reported."""

import sys
import threading
import time
from pathlib import Path

import pytest

from upfield.common.errors import InputError
from upfield.common.stores.command_client import CommandFailedError
from upfield.common.stores.store import Store
from upfield.common.stores.transfer import TransferCancelledError


def store(program: str, timeout_s: float = 60) -> Store:
    """A store whose command is a Python program that finds the address in `url`."""
    return Store("mem://host/set", timeout_s, f"{sys.executable} -c 'import sys; url = sys.argv[1]; {program}' {{url}}")


def test_the_output_of_the_command_is_the_file_and_the_address_is_one_argument(tmp_path: Path) -> None:
    copies = store("print(url, len(sys.argv), end=str())")
    copies.fetch("a b; $(touch x)/*.tar", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mem://host/set/a b; $(touch x)/*.tar 2"
    assert copies.read("a") == b"mem://host/set/a 2"


def test_a_command_that_fails_is_reported_with_its_code_and_last_line(tmp_path: Path) -> None:
    program = 'print("half"); print("first\\nno such key", file=sys.stderr); sys.exit(3)'
    with pytest.raises(CommandFailedError, match="ended with exit code 3, and its last message was: no such key"):
        store(program).fetch("a", tmp_path / "file")
    with pytest.raises(CommandFailedError, match="SIGKILL ended it without a message"):
        store("import os; os.kill(os.getpid(), 9)").fetch("a", tmp_path / "file")


def test_a_command_that_stalls_or_is_cancelled_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no data for 0\.2 s after 0 bytes"):
        store("import time; time.sleep(60)", 0.2).fetch("a", tmp_path / "file")
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(TransferCancelledError):
        store("import time; time.sleep(60)").fetch("a", tmp_path / "file", stopped=stopped)
    with pytest.raises(ValueError, match="more than 5 bytes"):
        store("import time; print(1234567, flush=True); time.sleep(60)").fetch("a", tmp_path / "file", 5)
    assert time.monotonic() - begun < 50


def test_a_missing_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs the program nonesuch, which was not found\. Install the program"):
        Store("s3://bucket/set", command="nonesuch cat {url}").fetch("a", tmp_path / "file")


def test_other_requests_are_refused() -> None:
    for request in (lambda s: s.list_sizes(), lambda s: s.write("a", b""), lambda s: s.fetch_ranges("a", [(0, 1)])):
        with pytest.raises(InputError, match="downloads whole files and cannot"):
            request(store("pass"))
