"""The stages that a scan passes on its way to an enhanced file: read, restored, written with its provenance."""

import errno
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from upfield.common.errors import InputError, RunError, UnwritableError
from upfield.common.files import atomic_path, hash_file, write_json
from upfield.common.progress import ProgressBar, say
from upfield.export.configuration import EnhanceConfig
from upfield.export.modelfile.onnx_restorer import OnnxRestorer
from upfield.export.scans.outputs import EnhanceTask
from upfield.export.scans.provenance import RESEARCH_USE, is_done, provenance_path
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import Layout, Prepared, expect_on_grid, prepare, write_enhanced
from upfield.imaging.regrid import read_grid
from upfield.imaging.volume import Volume

PACKAGES = ("upfield", "numpy", "scipy", "nibabel")
LEFT_S = 3600.0
FULL = (errno.ENOSPC, errno.EDQUOT)
# What is wrong with one place is no reason to give up the others.
OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Read:
    """A scan that has been read."""

    prepared: Prepared
    """What a model takes."""
    sha256: str
    """Of its file."""


class Enhancer:
    """Takes scans from file to file with one model."""

    def __init__(self, config: EnhanceConfig, bar: ProgressBar) -> None:
        """Load the model, and the other image's grid if there is one.

        Raises:
            InputError: either cannot be used, or the device is not there.
        """
        self._config, self._bar = config, bar
        self.layout = Layout(config.keep_ras, read_grid(config.like) if config.like else None)
        self.restorer = OnnxRestorer(config.model, config.device, batch_size=config.batch_size)
        self.model_sha256 = hash_file(config.model)
        self.num_skipped, self.num_written = 0, 0
        self._stopped = threading.Event()

    def read(self, job: EnhanceTask) -> Read | None:
        """Read and prepare a scan; None where it need not be enhanced again.

        Raises:
            InputError: it cannot be used.
        """
        sha256 = _hash_scan(job.scan)
        if self._config.resume and is_done(job.target, sha256, self.model_sha256, self.parameters()):
            self.num_skipped += 1
            return None
        prepared = prepare(job.scan, self.restorer.normalisation, str(job.scan))
        if self.layout.like is not None:
            expect_on_grid(prepared, self.layout.like, str(job.scan))
        return Read(prepared, sha256)

    def restore(self, job: EnhanceTask, read: Read) -> NDArray[np.float32]:
        """Restore a scan slice by slice: `(X, Y, Z)` in [0, 1]."""
        for note in read.prepared.notes:
            say(f"{job.scan}: {note}")
        self._bar.begin_parts(f"{job.scan.name}: slice", len(read.prepared.low))
        return restore_volume(read.prepared.low, self.restorer, self._config.batch_size, self._advance)

    def stop(self) -> None:
        """End the restoring of a scan in the middle, with an error."""
        self._stopped.set()
        self.restorer.stop()

    def _advance(self, num_slices: int) -> None:
        self._bar.advance_parts(num_slices)
        if self._stopped.is_set():
            raise KeyboardInterrupt

    def write(self, job: EnhanceTask, read: Read, restored: NDArray[np.float32]) -> None:
        """Write a restored scan `(X, Y, Z)` with its provenance, each complete or not at all.

        Raises:
            InputError: this file cannot be written.
            RunError: nor could any other: the disk is full, for instance.
        """
        try:
            _sweep(job.target)
            with atomic_path(job.target) as temporary:
                volume = write_enhanced(read.prepared, restored, temporary, self.layout)
                found = self.provenance(job, read, volume) | {"output_sha256": hash_file(temporary)}
                # First, as an output without it would be taken for somebody's original; see provenance.is_done.
                write_json(provenance_path(job.target), found)
        except OSError as error:
            raise _unwritten(job.target, error) from error
        self.num_written += 1
        size = " x ".join(map(str, volume.voxels.shape))
        print(f"{job.target}: {size} voxels of {_spacing(volume)} mm", flush=True)

    def parameters(self) -> dict[str, Any]:
        """Give what the user decided."""
        like = self.layout.like
        grid = like and {
            "file": like.name,
            "shape": list(like.shape),
            "affine": np.round(like.placement.affine, 6).tolist(),
        }
        return {
            "batch_size": self._config.batch_size,
            "device": self._config.device,
            "keep_ras": self._config.keep_ras,
            "like": grid,
        }

    def provenance(self, job: EnhanceTask, read: Read, volume: Volume) -> dict[str, Any]:
        """Give what is to be known of an enhanced scan, in plain values."""
        return {
            "source": job.scan.name,
            "source_sha256": read.sha256,
            "model": self._config.model.name,
            "model_sha256": self.model_sha256,
            "data_sha256": self.restorer.card.tree.get("data_sha256"),
            "parameters": self.parameters(),
            "provider": self.restorer.provider,
            "normalisation": self.restorer.normalisation,
            "shape": list(volume.voxels.shape),
            "spacing_mm": [round(float(mm), 6) for mm in volume.spacing_mm],
            "space": (self.layout.like.placement if self.layout.like else read.prepared.placement).space,
            "versions": {name: version(name) for name in PACKAGES} | {"onnxruntime": onnxruntime.__version__},
            "doubts": list(read.prepared.notes),
            "note": RESEARCH_USE,
        }


def _sweep(target: Path) -> None:
    """Remove what a killed run has left of a file; another that runs at the same time may be writing the rest."""
    for leftover in target.parent.glob(f".tmp-*-{escape(target.name)}"):
        # The other may remove it meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFT_S:
                leftover.unlink()


def _hash_scan(scan: Path) -> str:
    try:
        return hash_file(scan)
    except FileNotFoundError as error:
        raise InputError(f"{scan}: expected a NIfTI file, found none; check the path") from error
    except PermissionError as error:
        raise InputError(f"{scan}: expected a file that can be read, found: {error.strerror}") from error


def _unwritten(target: Path, error: OSError) -> InputError | RunError:
    if error.errno in FULL:
        return RunError(
            f"{target}: expected room for it, found none ({error.strerror}); make room and run the same command with "
            "--resume"
        )
    if error.errno in OF_THE_PLACE:
        return UnwritableError.from_system(target, "--out", error)
    return RunError(
        f"{target}: expected to write it, found: {error.strerror or error}; mend that and run with --resume"
    )


def _spacing(volume: Volume) -> str:
    shown = [f"{mm:.3g}" for mm in volume.spacing_mm]
    return shown[0] if len(set(shown)) == 1 else " x ".join(shown)
