"""The model card: metadata inside the ONNX file that describes the model and the input it expects."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from upfield.common.errors import InputError
from upfield.imaging.contrast import from_value
from upfield.model.baseline import warn_if_below_cubic
from upfield.sharding.configuration import GeometryConfig

FORMAT = "upfield-model"
VERSION = 2
# The key that holds the sha256 of the graph. It is not required, because files of older versions lack it.
HASH = "graph_sha256"
REQUIRED = ("config", "context", "data_sha256", "geometry", "model", "normalisation", "step")


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
    def contrasts(self) -> tuple[str, ...] | None:
        """Contrasts that the model was trained on; None if they are not known, as in files of earlier versions."""
        return from_value(self.tree.get("contrast"))

    @property
    def skull_stripped(self) -> bool | None:
        """Whether the model was trained on brains without skull; None if this is not known or if both were used."""
        return self.tree.get("skull_stripped")

    @property
    def normalisation(self) -> str:
        """Name of the method that brings intensities to [0, 1]."""
        return self.tree["normalisation"]

    def warn_if_below_cubic(self, name: str) -> str | None:
        """Return a warning if the run's validation was worse than cubic interpolation, and None otherwise.

        Args:
            name: name of the file.
        """
        return warn_if_below_cubic(name, self.tree["step"], self.tree.get("metrics", {}).get("validation", {}))

    @property
    def geometry(self) -> GeometryConfig:
        """The grids of the training data. Intensities are normalised within the box of its high-field grid."""
        return GeometryConfig.from_tree(self.tree["geometry"])


def hash_graph(model: onnx.ModelProto, folder: Path) -> str:
    """Return the sha256 of a model's layers and weights, wherever its weights are stored, in hexadecimal digits.

    Args:
        model: the model.
        folder: folder of the model file, which also holds its weights if they are in a second file.
    """
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
        digest.update(_bytes_of(tensor, folder))
    for part in (*model.opset_import, *model.graph.node, *model.graph.input, *model.graph.output):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _bytes_of(tensor: onnx.TensorProto, folder: Path) -> bytes:
    if not uses_external_data(tensor):
        return tensor.raw_data
    loaded = onnx.TensorProto()
    loaded.CopyFrom(tensor)
    load_external_data_for_tensor(loaded, str(folder))
    return loaded.raw_data


def write_card(model: onnx.ModelProto, tree: dict[str, Any]) -> None:
    """Replace the metadata of an in-memory model with the format's name and version and the keys of `tree`, as JSON.

    The hash of the graph belongs to the model, so it is kept, and one in `tree` is ignored.
    """
    own_hash = _entries_of(model).get(HASH)
    entries = {"format": FORMAT, "format_version": VERSION} | {key: tree[key] for key in tree.keys() - {HASH}}
    texts = {key: json.dumps(value, sort_keys=True, allow_nan=False) for key, value in entries.items()}
    del model.metadata_props[:]
    for key, text in sorted((texts | ({HASH: own_hash} if own_hash else {})).items()):
        model.metadata_props.add(key=key, value=text)


def seal_graph(model: onnx.ModelProto) -> None:
    """Store the hash of a finished graph, whose weights are in memory, in the model's metadata."""
    model.metadata_props.add(key=HASH, value=json.dumps(hash_graph(model, Path())))


def read_card(path: Path) -> ModelCard:
    """Read a model file's metadata without opening an ONNX Runtime session, which takes seconds.

    Raises:
        InputError: the file is missing or damaged, has another format version, or was not written by `upfield export`.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name the .onnx file in it.")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Write a model file with upfield export, or correct the path.")
    model = _load(path)
    if model is None:
        raise InputError(f"{path} is not an ONNX file, or is truncated or damaged. Copy it or export the run again.")
    entries = _entries_of(model)
    if not {"format", "format_version"} <= entries.keys():
        raise InputError(f"{path}: the metadata of a model file is missing. Name a file that upfield export wrote.")
    try:
        tree = {key: json.loads(value) for key, value in entries.items()}
    except ValueError as error:
        raise InputError(f"{path}: its metadata is not valid JSON ({error}). Export the run again.") from error
    _expect_version(tree, path)
    if missing := [key for key in REQUIRED if key not in tree]:
        raise InputError(f"{path}: its metadata lacks {', '.join(missing)}. Export the run again.")
    _expect_undamaged(model, tree, path)
    return ModelCard(tree)


def is_model_file(path: Path) -> bool:
    """Return whether any version of `upfield export` wrote this file."""
    model = _load(path) if path.is_file() else None
    return model is not None and _entries_of(model).get("format") == json.dumps(FORMAT)


def _load(path: Path) -> onnx.ModelProto | None:
    """Load an ONNX file without weights that are in a second file; return None if it is not an ONNX file."""
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError:
        return None
    return model if model.graph.node else None


def _entries_of(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _expect_undamaged(model: onnx.ModelProto, tree: dict[str, Any], path: Path) -> None:
    """Raise InputError if the graph differs from the exported one; files of older versions state no hash."""
    if HASH not in tree:
        return
    try:
        found = hash_graph(model, path.parent)
    except (OSError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: its weight file cannot be read ({reason}). Copy both files again.") from error
    if found != tree[HASH]:
        raise InputError(
            f"{path}: the file is damaged: its weights or layers have changed since the export. Copy it or export the "
            "run again."
        )


def _expect_version(tree: dict[str, Any], path: Path) -> None:
    name, version = tree["format"], tree["format_version"]
    if name != FORMAT or not isinstance(version, int):
        raise InputError(f"{path}: expected format {FORMAT} {VERSION}, found {name} {version}. Export the run again.")
    if version > VERSION:
        raise InputError(
            f"{path}: expected format version {VERSION}, found {version}, which a newer upfield wrote. Update upfield."
        )
    if version < VERSION:
        raise InputError(
            f"{path}: expected format version {VERSION}, found {version}, which normalises scans differently. "
            "Export the run again."
        )
