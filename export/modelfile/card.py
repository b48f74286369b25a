"""The model card: metadata inside the ONNX file that describes the model and the input it expects."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from upfield.common.errors import InputError

FORMAT = "upfield-model"
VERSION = 1
REQUIRED = ("config", "context", "data_sha256", "model", "normalisation", "step")


@dataclass(frozen=True)
class ModelCard:
    """A model file's metadata."""

    tree: dict[str, Any]
    """All keys and values; `describe_run` in run_metadata.py lists them."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the restored slice."""
        return self.tree["context"]

    @property
    def normalisation(self) -> str:
        """Name of the method that brings intensities to [0, 1]."""
        return self.tree["normalisation"]


def write_card(model: onnx.ModelProto, tree: dict[str, Any]) -> None:
    """Replace the metadata of an in-memory model with the format's name and version and the keys of `tree`, as JSON."""
    del model.metadata_props[:]
    for key, value in sorted(({"format": FORMAT, "format_version": VERSION} | tree).items()):
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True, allow_nan=False))


def read_card(path: Path) -> ModelCard:
    """Read a model file's metadata without opening an ONNX Runtime session, which takes seconds.

    Raises:
        InputError: the file is missing or damaged, has another format version, or was not written by `upfield export`.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name the .onnx file in it.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Write a model file with upfield export, or correct the path.")
    entries = _read_metadata(path)
    if entries is None:
        raise InputError(f"{path} is not an ONNX file, or is truncated or damaged. Copy it or export the run again.")
    if not {"format", "format_version"} <= entries.keys():
        raise InputError(f"{path}: the metadata of a model file is missing. Name a file that upfield export wrote.")
    try:
        tree = {key: json.loads(value) for key, value in entries.items()}
    except ValueError as error:
        raise InputError(f"{path}: its metadata is not valid JSON ({error}). Export the run again.") from error
    _expect_version(tree, path)
    if missing := [key for key in REQUIRED if key not in tree]:
        raise InputError(f"{path}: its metadata lacks {', '.join(missing)}. Export the run again.")
    return ModelCard(tree)


def is_model_file(path: Path) -> bool:
    """Return whether any version of `upfield export` wrote this file."""
    entries = _read_metadata(path) if path.is_file() else None
    return (entries or {}).get("format") == json.dumps(FORMAT)


def _read_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of an ONNX file, or None if the file is not one."""
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError:
        return None
    return {entry.key: entry.value for entry in model.metadata_props} if model.graph.node else None


def _expect_version(tree: dict[str, Any], path: Path) -> None:
    name, version = tree["format"], tree["format_version"]
    if name != FORMAT or not isinstance(version, int):
        raise InputError(f"{path}: expected format {FORMAT} {VERSION}, found {name} {version}. Export the run again.")
    if version > VERSION:
        raise InputError(
            f"{path}: expected format version {VERSION}, found {version}, which a newer upfield wrote. Update upfield."
        )
    if version < VERSION:
        raise InputError(f"{path}: expected format version {VERSION}, found {version}. Export the run again.")
