"""The provenance file beside an enhanced scan, which names its source, model and parameters."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upfield.common.files import hash_file

RESEARCH_USE = (
    "Made by a neural network from a low-field scan: for research, not for diagnosis; details may be invented."
)
# Every provenance file of `upfield enhance` has these keys.
REQUIRED_KEYS = ("source_sha256", "model_sha256", "note")
# Together with the scan and the model, these parameters determine the image. Batch size, device and engine change only
# its rounding.
IMAGE_PARAMETERS = ("keep_ras", "like")


def provenance_path(target: Path) -> Path:
    """Return the path of an enhanced scan's provenance."""
    name = target.name
    for suffix in (".gz", ".nii"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return target.with_name(f"{name}.json")


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Read a provenance file; return None if it cannot be read or `upfield enhance` did not write it."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return tree if is_provenance(tree) else None


def is_provenance(tree: Any) -> bool:
    """Return whether a parsed JSON file is the provenance of an enhanced scan."""
    return isinstance(tree, dict) and all(key in tree for key in REQUIRED_KEYS)


def is_done(target: Path, source_sha256: str, model_sha256: str, parameters: Mapping[str, Any]) -> bool:
    """Return whether `target` is complete and was made from the same scan by the same model with equal parameters."""
    tree = read_provenance(provenance_path(target))
    if tree is None or not target.is_file():
        return False
    old = tree.get("parameters")
    return (
        (tree["source_sha256"], tree["model_sha256"]) == (source_sha256, model_sha256)
        and isinstance(old, dict)
        and all(old.get(key) == parameters[key] for key in IMAGE_PARAMETERS)
        # The provenance is written before the output. A run that is killed in between leaves an older output or none.
        and tree.get("output_sha256") == hash_file(target)
    )
