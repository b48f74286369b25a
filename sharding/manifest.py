"""The manifest: what a shard set is. It is written last, so a set with a manifest is a complete set."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upfield.sharding.atomic import write_json
from upfield.sharding.cohort import SPLITS, Subject
from upfield.sharding.command import to_tree
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.errors import ShardSetError
from upfield.sharding.intensity import NORMALISATION
from upfield.sharding.tarshard import ShardEntry

FORMAT = "upfield-shards"
VERSION = 1
MANIFEST = "manifest.json"
# Where and how fast a set was built is not part of what it is.
NOT_CONTENT = ("out", "root", "jobs", "executor")


@dataclass(frozen=True)
class Manifest:
    """A set's manifest, read."""

    tree: dict[str, Any]
    """The whole file."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the low-field slice."""
        return self.tree["config"]["context"]

    @property
    def normalisation(self) -> str:
        """How intensities were brought to [0, 1]."""
        return self.tree["normalisation"]

    @property
    def data_sha256(self) -> str:
        """Hash of all shards' hashes: equal for equal data."""
        return self.tree["data_sha256"]

    def sample_shape(self, member: str) -> tuple[int, int, int]:
        """Give the shape of `low` or `high` in a sample."""
        channels, height, width = self.tree["sample"][member]["shape"]
        return channels, height, width

    def shards(self, split: str) -> list[ShardEntry]:
        """Give the shards of a split."""
        return [ShardEntry(**entry) for entry in self.tree["splits"][split]["shards"]]

    def subjects(self, split: str) -> list[dict[str, str]]:
        """Give the subjects of a split: cohort, subject."""
        return self.tree["splits"][split]["subjects"]


def content_config(config: ShardConfig) -> dict[str, Any]:
    """Give the part of a configuration that decides what a set holds."""
    return {key: value for key, value in to_tree(config).items() if key not in NOT_CONTENT}


def hash_tree(tree: Any) -> str:
    """Give the sha256 of a tree of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def write_manifest(root: Path, config: ShardConfig, subjects: list[Subject], entries: list[ShardEntry]) -> None:
    """Write the manifest of a set whose shards are all in place.

    Args:
        root: folder of the set.
        config: what it was built with.
        subjects: all subjects.
        entries: all shards.
    """
    _, height, width = config.geometry.high_shape
    content = content_config(config)
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "config": content,
        "config_sha256": hash_tree(content),
        "data_sha256": hash_tree([entry.sha256 for entry in entries]),
        "normalisation": NORMALISATION,
        "sample": {
            "low": {"shape": [1 + 2 * config.context, height, width], "dtype": "float16"},
            "high": {"shape": [1, height, width], "dtype": "float16"},
        },
        "splits": {split: _split_tree(split, subjects, entries) for split in SPLITS},
    }
    write_json(root / MANIFEST, tree)


def _split_tree(split: str, subjects: list[Subject], entries: list[ShardEntry]) -> dict[str, Any]:
    chosen = [entry for entry in entries if entry.name.startswith(f"{split}/")]
    return {
        "samples": sum(entry.samples for entry in chosen),
        "subjects": [{"cohort": s.cohort, "subject": s.id} for s in subjects if s.split == split],
        "shards": [asdict(entry) for entry in chosen],
    }


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a shard set.

    Raises:
        ShardSetError: none there (an unfinished build, or no set at all), unreadable, or of another format version.
    """
    path = root / MANIFEST
    if not path.is_file():
        what = "an unfinished build" if (root / "build.json").is_file() else "no shard set"
        raise ShardSetError(f"{path}: expected a complete shard set, found {what}; run upfield shard to build it")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        found = (tree["format"], tree["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardSetError(f"{path}: expected a shard set's manifest, found something else: {error}") from error
    if found != (FORMAT, VERSION):
        raise ShardSetError(f"{path}: expected format {FORMAT} version {VERSION}, found {found[0]} version {found[1]}")
    return Manifest(tree)
