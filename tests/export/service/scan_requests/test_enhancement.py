"""A scan is read in one pass: its header is parsed once, and its content is inflated once."""

import asyncio
import gzip
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from isal import igzip
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage
from nibabel.nifti1 import Nifti1Header
from serving import running, send, write_scan

from upfield.export.service.scan_requests.enhancement import in_thread


def count_readings(monkeypatch: pytest.MonkeyPatch, content: bytes) -> Counter[str]:
    """Count how often the header of `content` is parsed, and how often gzip files are opened."""
    counts: Counter[str] = Counter()

    def count(name: str, kind: Any, is_counted: Any) -> None:
        original = kind.__init__

        def counting(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) is kind and is_counted(*args, **kwargs):
                counts[name] += 1
            original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", counting)

    for header in (Nifti1Header, MGHHeader):
        # The enhanced scan has a header too, but another one.
        count("parsed", header, lambda block=None, *_, **__: block is not None and content.startswith(bytes(block)))
    for file in (igzip.IGzipFile, gzip.GzipFile):
        count("inflated", file, lambda *_, **__: True)
    return counts


def mgz(folder: Path) -> Path:
    voxels = np.random.default_rng(0).random((12, 14, 6), np.float32)
    path = folder / "scan.mgz"
    image: Any = MGHImage
    image(voxels, np.diag((1.6, 1.6, 5.0, 1.0))).to_filename(path)
    return path


@pytest.mark.parametrize("kind", ["nii.gz", "nii.gz without a name", "nii", "mgz", "mgz without a name"])
def test_a_header_is_parsed_once_and_an_upload_is_inflated_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    suffix = kind.split(maxsplit=1)[0]
    scan = mgz(tmp_path) if suffix == "mgz" else write_scan(tmp_path / f"scan.{suffix}")
    stored = scan.read_bytes()
    content = stored if suffix == "nii" else gzip.decompress(stored)
    with running(tiny_model, tmp_path / "w") as service, monkeypatch.context() as patch:
        counted = count_readings(patch, content)
        response = send(service.port, stored if "without" in kind else scan)
    assert response.status == 200
    assert counted["parsed"] == 1
    assert counted["inflated"] == (0 if suffix == "nii" else 1)
    assert nib.Nifti1Image.from_bytes(gzip.decompress(response.body)).shape == (19, 22, 30)


def test_a_scan_cancelled_before_it_has_a_thread_is_not_read() -> None:
    async def run() -> None:
        gate, read = threading.Event(), []
        with ThreadPoolExecutor(1) as executor:
            held = executor.submit(gate.wait, 60)
            late = asyncio.create_task(in_thread(executor, read.append, "a scan"))
            await asyncio.sleep(0)
            late.cancel()
            await asyncio.wait([late], timeout=30)
            assert late.cancelled()
            gate.set()
            assert held.result(60)
        assert read == []

    asyncio.run(run())
