"""The Python interface of upfield.

Each name is imported when it is first used, so `import upfield` itself loads no library. Functions return their results
and print progress and warnings on stderr, as the commands do. Nothing is printed on stdout.

Examples:
    >>> import upfield
    >>> scan = upfield.read_scan("scan.nii.gz")  # NIfTI or MGH, turned to RAS+
    >>> model = upfield.load_model("model.onnx")  # or a run, or a name
    >>> restored = model.restore(scan.voxels, scan.affine)  # 1 mm, in [0, 1]
    >>> restored.voxels.shape
    (38, 45, 50)
    >>> shards = upfield.open_shards("shards")  # a folder or an address
    >>> for pair in shards.split("test").slices():
    ...     error = abs(pair.low - pair.high).mean()
    >>> metrics = upfield.evaluate(model, shards, split="test")
    >>> psnr = {name: metrics[name]["psnr_slice"]["mean"] for name in ("cubic", "model")}
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upfield.common.errors import InputError as InputError
    from upfield.common.errors import RunError as RunError
    from upfield.evaluation.workflow import evaluate as evaluate
    from upfield.export.scans.enhance_scans import enhance as enhance
    from upfield.export.scans.loaded_model import Model as Model
    from upfield.export.scans.loaded_model import load_model as load_model
    from upfield.imaging.volume import Volume as Volume
    from upfield.imaging.volume_file import read_scan as read_scan
    from upfield.sharding.building.destination import build_shards as build_shards
    from upfield.sharding.configuration import CohortConfig as CohortConfig
    from upfield.sharding.configuration import GeometryConfig as GeometryConfig
    from upfield.sharding.configuration import ShardConfig as ShardConfig
    from upfield.sharding.shardset.shard_set import ShardSet as ShardSet
    from upfield.sharding.shardset.shard_set import open_shards as open_shards
    from upfield.sharding.shardset.split_reader import PairedVolume as PairedVolume
    from upfield.sharding.shardset.split_reader import SlicePair as SlicePair
    from upfield.sharding.shardset.split_reader import SplitReader as SplitReader

    __version__: str

# The module that defines each name.
_MODULES = {
    "CohortConfig": "upfield.sharding.configuration",
    "GeometryConfig": "upfield.sharding.configuration",
    "InputError": "upfield.common.errors",
    "Model": "upfield.export.scans.loaded_model",
    "PairedVolume": "upfield.sharding.shardset.split_reader",
    "RunError": "upfield.common.errors",
    "ShardConfig": "upfield.sharding.configuration",
    "ShardSet": "upfield.sharding.shardset.shard_set",
    "SlicePair": "upfield.sharding.shardset.split_reader",
    "SplitReader": "upfield.sharding.shardset.split_reader",
    "Volume": "upfield.imaging.volume",
    "build_shards": "upfield.sharding.building.destination",
    "enhance": "upfield.export.scans.enhance_scans",
    "evaluate": "upfield.evaluation.workflow",
    "load_model": "upfield.export.scans.loaded_model",
    "open_shards": "upfield.sharding.shardset.shard_set",
    "read_scan": "upfield.imaging.volume_file",
}

# ruff: noqa: RUF022 - in the order of the road
__all__ = [
    "read_scan",
    "Volume",
    "load_model",
    "Model",
    "enhance",
    "open_shards",
    "ShardSet",
    "SplitReader",
    "SlicePair",
    "PairedVolume",
    "evaluate",
    "build_shards",
    "ShardConfig",
    "CohortConfig",
    "GeometryConfig",
    "InputError",
    "RunError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("upfield")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'upfield' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
