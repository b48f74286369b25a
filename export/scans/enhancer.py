"""The stages that a scan passes on its way to an enhanced file: read, restore, write with provenance."""

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError, OutputError, UnwritableError
from upfield.common.files import atomic_path, hash_file, write_json
from upfield.common.progress import ProgressBar, say
from upfield.export.configuration import EnhanceConfig
from upfield.export.modelfile.engines import open_model_file
from upfield.export.pretrained.packaged_model import describe_model
from upfield.export.scans.outputs import EnhanceTask
from upfield.export.scans.provenance import RESEARCH_USE, is_done, provenance_path
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import ModelInput, OutputLayout, expect_on_grid, prepare, space_name, write_enhanced
from upfield.export.scans.scan_claim import ScanClaim
from upfield.imaging.contrast import read_sidecar
from upfield.imaging.regrid import read_grid
from upfield.imaging.volume import Volume

PACKAGES = ("upfield", "numpy", "scipy", "nibabel")
LEFTOVER_AGE_S = 3600.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# These errors concern one path only; other outputs can still be written.
PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class LoadedScan:
    """A scan in memory, ready to be restored."""

    model_input: ModelInput
    """The scan as input for the model: interpolated to 1 mm, with normalised intensities."""
    sha256: str
    """Hash of the scan's file."""


class Enhancer:
    """Enhances scans with one model, from file to file; each stage may run in its own thread."""

    def __init__(self, config: EnhanceConfig, bar: ProgressBar, announce: Callable[[str], None]) -> None:
        """Load the model, and the grid of `config.like` if it is set.

        Args:
            config: configuration of the command.
            bar: shows the slices of the scan that is restored.
            announce: called with a line about each file that was written.

        Raises:
            InputError: the model, the device or the grid cannot be used.
        """
        self._config, self._bar, self._announce = config, bar, announce
        self.layout = OutputLayout(config.keep_ras, read_grid(config.like) if config.like else None)
        self.restorer = open_model_file(config.model, config.engine, config.device, batch_size=config.batch_size)
        self.model_sha256 = hash_file(config.model)
        self.num_skipped = 0
        self.written: list[Path] = []
        """The files that were written."""
        self._stopped = threading.Event()

    def read(self, task: EnhanceTask) -> LoadedScan | None:
        """Read and prepare a scan; return None if `config.resume` is set and its output is complete.

        Raises:
            InputError: the scan cannot be used.
        """
        sha256 = _hash_scan(task.scan)
        if self._config.resume and is_done(task.target, sha256, self.model_sha256, self.parameters()):
            self.num_skipped += 1
            return None
        claim = ScanClaim(task.scan.name, read_sidecar(task.scan), self._config.contrast)
        model_input = prepare(task.scan, self.restorer.card, str(task.scan), claim)
        if self.layout.like is not None:
            doubt = expect_on_grid(model_input, self.layout.like, str(task.scan))
            if doubt is not None:
                model_input = replace(model_input, notes=(*model_input.notes, doubt))
        return LoadedScan(model_input, sha256)

    def restore(self, task: EnhanceTask, scan: LoadedScan) -> NDArray[np.float32]:
        """Restore a scan slice by slice, and return it as `(X, Y, Z)` in [0, 1]."""
        for note in scan.model_input.notes:
            say(f"{task.scan}: {note}")
        low = scan.model_input.low
        self._bar.begin_parts(f"{task.scan.name}: slice", len(low))
        return restore_volume(low, self.restorer, self._config.batch_size, self._advance)

    def stop(self) -> None:
        """Make a running `restore` end early with an error."""
        self._stopped.set()
        self.restorer.stop()

    def _advance(self, num_slices: int) -> None:
        self._bar.advance_parts(num_slices)
        if self._stopped.is_set():
            raise KeyboardInterrupt

    def write(self, task: EnhanceTask, scan: LoadedScan, restored: NDArray[np.float32]) -> None:
        """Write a restored scan `(X, Y, Z)` and its provenance; each file is complete or absent.

        Raises:
            InputError: this file cannot be written.
            OutputError: no other file could be written either, for example because the disk is full.
        """
        try:
            _remove_leftovers(task.target)
            with atomic_path(task.target) as temporary:
                volume = write_enhanced(scan.model_input, restored, temporary, self.layout)
                provenance = self.provenance(task, scan, volume) | {"output_sha256": hash_file(temporary)}
                # The provenance is written before the output is renamed, because an output without provenance would
                # look like an original.
                write_json(provenance_path(task.target), provenance)
        except OSError as error:
            raise _unwritten(task.target, error) from error
        self.written.append(task.target)
        size = " x ".join(map(str, volume.voxels.shape))
        self._announce(f"{task.target}: {size} voxels of {_spacing(volume)} mm")

    def parameters(self) -> dict[str, Any]:
        """Return the user's options as they are recorded in the provenance."""
        like = self.layout.like
        grid = like and {
            "file": like.name,
            "shape": list(like.shape),
            "affine": np.round(like.placement.affine, 6).tolist(),
        }
        return {
            "batch_size": self._config.batch_size,
            "device": self._config.device,
            "engine": self._config.engine,
            "keep_ras": self._config.keep_ras,
            "like": grid,
        }

    def provenance(self, task: EnhanceTask, scan: LoadedScan, volume: Volume) -> dict[str, Any]:
        """Return the provenance of an enhanced scan as JSON-serialisable values, without `output_sha256`."""
        return {
            "source": task.scan.name,
            "source_sha256": scan.sha256,
            "model": self._config.model.name,
            "model_sha256": self.model_sha256,
            "data_sha256": self.restorer.card.tree.get("data_sha256"),
            "parameters": self.parameters(),
            "contrast": {"stated": self._config.contrast, "model": self.restorer.card.tree.get("contrast")},
            "provider": self.restorer.provider,
            "normalisation": self.restorer.normalisation,
            "shape": list(volume.voxels.shape),
            "spacing_mm": [round(float(mm), 6) for mm in volume.spacing_mm],
            "space": space_name(scan.model_input, self.layout),
            "versions": {name: version(name) for name in PACKAGES}
            | {self.restorer.library: self.restorer.library_version},
            "doubts": list(scan.model_input.notes),
            "note": RESEARCH_USE,
        } | describe_model(self._config.model)


def _remove_leftovers(target: Path) -> None:
    """Remove old temporary files of killed runs; newer ones may belong to a run that is still writing."""
    for leftover in target.parent.glob(f".tmp-*-{escape(target.name)}"):
        # Another run may remove the file first.
        with suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                leftover.unlink()


def _hash_scan(scan: Path) -> str:
    # Opening a pipe would wait for a writer.
    if scan.exists() and not scan.is_file():
        raise InputError(f"{scan} is not a regular file. Leave it out.")
    try:
        return hash_file(scan)
    except FileNotFoundError as error:
        raise InputError(f"{scan}: there is no such file. Check the path.") from error
    except OSError as error:
        raise InputError(
            f"{scan} cannot be read ({error.strerror}). Check its permissions and its disk, or leave it out."
        ) from error


def _unwritten(target: Path, error: OSError) -> InputError | OutputError:
    if error.errno in DISK_FULL:
        return OutputError(
            f"{target}: there is not enough space to write this file ({error.strerror}). Free some space, and run the "
            "same command with --resume."
        )
    if error.errno in PATH_ERRORS:
        return UnwritableError.from_system(target, "--out", error)
    return OutputError(
        f"{target} cannot be written ({error.strerror or error}). Fix this, and run the same command with --resume."
    )


def _spacing(volume: Volume) -> str:
    shown = [f"{mm:.3g}" for mm in volume.spacing_mm]
    return shown[0] if len(set(shown)) == 1 else " x ".join(shown)
