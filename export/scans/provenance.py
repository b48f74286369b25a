"""What stands beside an enhanced scan: what it was made of, by what, and how."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESEARCH_USE = (
    "Made by a neural network from a low-field scan: for research, not for diagnosis; details may be invented."
)
# Without any one of them a file is not ours.
OURS = ("source_sha256", "model_sha256", "note")
# What decides the image, besides the model. How many slices at once, and where, changes no more than its rounding.
DECISIVE = ("keep_ras", "like")


def provenance_path(target: Path) -> Path:
    """Give the place of an enhanced scan's provenance."""
    name = target.name
    for suffix in (".gz", ".nii"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return target.with_name(f"{name}.json")


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Read a provenance file; None where there is none, or it is not one of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and all(key in found for key in OURS) else None


def is_done(target: Path, source_sha256: str, model_sha256: str, parameters: Mapping[str, Any]) -> bool:
    """Tell whether a scan's output is there, whole, and made of the same scan by the same model in the same way."""
    from upfield.common.files import hash_file

    found = read_provenance(provenance_path(target))
    if found is None or not target.is_file():
        return False
    old = found.get("parameters")
    return (
        (found["source_sha256"], found["model_sha256"]) == (source_sha256, model_sha256)
        and isinstance(old, dict)
        and all(old.get(key) == parameters[key] for key in DECISIVE)
        # The provenance is written first: a run that was cut short between the two leaves an older output, or none.
        and found.get("output_sha256") == hash_file(target)
    )
