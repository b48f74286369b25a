"""The folder of the demonstration: which files it holds, and when it may be replaced."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from upfield.common.errors import InputError, UnwritableError

MARK, MARK_TEXT = "demo.json", '{"made_by": "upfield demo"}\n'


@dataclass(frozen=True)
class Places:
    """The files and folders of the demonstration."""

    out: Path
    """Folder that holds all of them."""

    @property
    def cohort(self) -> Path:
        """NIfTI files and cohorts.yaml."""
        return self.out / "cohort"

    @property
    def shards(self) -> Path:
        """The shard set."""
        return self.out / "shards"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.out / "run"

    @property
    def evaluation(self) -> Path:
        """Metrics and their report."""
        return self.out / "evaluation"

    @property
    def model(self) -> Path:
        """The model file."""
        return self.out / "model.onnx"

    @property
    def enhanced(self) -> Path:
        """Enhanced scans."""
        return self.out / "enhanced"

    @property
    def report(self) -> Path:
        """The report of the demonstration."""
        return self.out / "report.html"

    @property
    def log(self) -> Path:
        """Everything that the stages printed."""
        return self.out / "demo.log"


def prepare_folder(out: Path) -> None:
    """Create the folder; delete an earlier demonstration in it.

    Raises:
        InputError: the folder holds other files, or nothing can be written there.
    """
    try:
        if out.is_dir():
            if any(out.iterdir()) and not is_demonstration(out):
                raise InputError(f"{out} holds files that upfield demo did not write. Choose another --out.")
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / MARK).write_text(MARK_TEXT, encoding="utf-8")
    except OSError as error:
        raise UnwritableError.from_system(out, "--out", error) from error


def is_demonstration(out: Path) -> bool:
    """Return whether a folder holds an earlier demonstration."""
    mark = out / MARK
    return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace") == MARK_TEXT
