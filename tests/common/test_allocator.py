"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

CHURN = """
from resource import RUSAGE_SELF, getrusage
import torch
from upfield.common.allocator import keep_freed_memory
for keep in (False, True):
    keep_freed_memory(keep)
    torch.zeros(2**24)
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.zeros(2**24)  # 64 MiB, freed at once
    print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert returned > 1000  # one fault per page, or one per huge page
    assert kept < returned / 5  # The heap takes a few rounds to settle.
