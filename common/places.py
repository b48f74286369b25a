"""Recognise what a user has named in place of something else: a run for a model, or one file of a set for the set."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from upfield.common.errors import InputError

SCAN_SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
# A DICOM file begins with 128 bytes of any content and these four.
DICOM_MAGIC = b"DICM"
# Files by which the folder of each kind is recognised.
MANIFEST, BEST_MODEL, COHORTS = "manifest.json", "best/model.safetensors", "cohorts.yaml"
# A folder may hold many files, and the first ones tell what it is.
FIRST_FILES = 50


@dataclass(frozen=True)
class RecognisedPlace:
    """A file or folder that upfield knows."""

    place: Path
    """What the user named."""
    kind: str
    """What it is, with an article, such as `the folder of a run` or `a scan`."""
    whole: Path
    """The run or the shard set to which it belongs; otherwise `place` itself."""


def recognise(place: Path) -> RecognisedPlace | None:
    """Return what a path is, judged by names and, for DICOM, by the first bytes; None if it is missing or unknown."""
    if not place.exists():
        return None
    if place.is_file() and place.name.lower().endswith(SCAN_SUFFIXES):
        return RecognisedPlace(place, "a scan", place)
    if place.is_file() and place.suffix.lower() == ".onnx":
        return RecognisedPlace(place, "a model file", place)
    for whole in (place, *islice(place.absolute().parents, 2)):
        is_part = whole != place
        if (whole / BEST_MODEL).is_file():
            return RecognisedPlace(place, "a part of a run" if is_part else "the folder of a run", whole)
        if (whole / MANIFEST).is_file() and (whole / "train").is_dir():
            return RecognisedPlace(place, "a part of a shard set" if is_part else "a shard set", whole)
    if place.suffix.lower() in (".yaml", ".yml"):
        return RecognisedPlace(place, "a configuration file", place)
    if is_dicom(place):
        return RecognisedPlace(place, "a DICOM series" if place.is_dir() else "a DICOM file", place)
    if (place / COHORTS).is_file():
        return RecognisedPlace(place, "the folder of a cohort", place)
    return None


def is_dicom(place: Path) -> bool:
    """Return whether a file is a DICOM file, or whether the first files of a folder are."""
    if place.is_dir():
        files = [path for path in islice(sorted(place.iterdir()), FIRST_FILES) if path.is_file()]
        return any(is_dicom(path) for path in files[:3])
    if place.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with place.open("rb") as file:
            return file.read(132)[128:] == DICOM_MAGIC
    except OSError:
        return False


def refuse_other_than_scan(place: Path) -> None:
    """Raise InputError if a path is recognised as something else than a scan."""
    found = recognise(place)
    if found is None or found.kind == "a scan":
        return
    if found.kind in ("a DICOM series", "a DICOM file"):
        raise dicom_error(place, found.kind, place if place.is_dir() else place.parent)
    raise InputError(f"{place} is {found.kind}, not a scan. Name NIfTI or MGH files.")


def dicom_error(place: Path, kind: str, series: Path) -> InputError:
    """Return the error for a DICOM file or series in place of a scan.

    Args:
        place: what the user named.
        kind: what it is, such as `a DICOM file`.
        series: folder of the series.
    """
    return InputError(f"{place} is {kind}, not a NIfTI file. Convert it first, for example with `dcm2niix {series}`.")


def shown_whole(found: RecognisedPlace) -> Path:
    """Return the run or the set to which a place belongs, relative to the current folder if the place was."""
    if found.place.is_absolute() or not found.whole.is_absolute():
        return found.whole
    here = Path.cwd()
    return found.whole.relative_to(here) if found.whole.is_relative_to(here) else found.whole
