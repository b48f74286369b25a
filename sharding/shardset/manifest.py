"""The manifest describes a shard set. It is written last, so a set with a manifest is complete."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from upfield.common.errors import ShardSetError
from upfield.common.places import COHORTS, recognise, shown_whole
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_index import ShardEntry
from upfield.sharding.shardset.split_index import IndexEntry

FORMAT = "upfield-shards"
VERSION = 2
MANIFEST = "manifest.json"
# Folder inside the set's folder in which an unfinished build keeps its records.
JOURNAL = ".build"
JOURNAL_CONFIG = "config.json"
# Mattes mutual information of an aligned pair, in nats. Phantom pairs reach 1.4 to 1.55, and 0.65 under heavy noise;
# another subject's head or a mirrored one reaches at most 0.48. The limit was chosen on these; true 64 mT pairs may
# differ.
MIN_SIMILARITY = 0.5
# Similarity varies with contrast and noise between cohorts, and much less within a cohort.
MIN_SHARE_OF_USUAL = 0.6


@dataclass(frozen=True)
class Manifest:
    """The manifest of a shard set."""

    tree: dict[str, Any]
    """The parsed file."""

    @property
    def context(self) -> int:
        """Neighbouring slices on each side of the low-field slice."""
        return self.tree["config"]["context"]

    @property
    def geometry(self) -> dict[str, Any]:
        """The two grids, as plain values."""
        return self.tree["config"]["geometry"]

    @property
    def normalisation(self) -> str:
        """How intensities were scaled to [0, 1]."""
        return self.tree["normalisation"]

    @property
    def data_sha256(self) -> str:
        """Hash of the hashes of all shards: equal for equal data."""
        return self.tree["data_sha256"]

    def sample_shape(self, member: str) -> tuple[int, int, int]:
        """Return the shape `(channels, Y, Z)` of `low` or `high` in a sample."""
        channels, height, width = self.tree["sample"][member]["shape"]
        return channels, height, width

    @property
    def labelled_cohorts(self) -> frozenset[str]:
        """Names of the cohorts whose samples carry labels."""
        return frozenset(name for name, cohort in self.cohorts.items() if cohort.get("keep_labels"))

    def shards(self, split: str) -> list[ShardEntry]:
        """Return the shards of a split."""
        return [ShardEntry(**entry) for entry in self.tree["splits"][split]["shards"]]

    def with_training_shards(self, names: Collection[str]) -> "Manifest":
        """Return this manifest with only some of the training shards, and with the data hash of what is left."""
        splits = self.tree["splits"]
        shards = [entry for entry in splits["train"]["shards"] if entry["name"] in names]
        if len(shards) == len(splits["train"]["shards"]):
            return self
        # The binary index describes the whole split.
        train = {key: value for key, value in splits["train"].items() if key != "index"} | {"shards": shards}
        tree = self.tree | {"splits": splits | {"train": train}}
        left = sorted((entry for split in SPLITS for entry in tree["splits"][split]["shards"]), key=itemgetter("name"))
        return Manifest(tree | {"data_sha256": hash_tree([entry["sha256"] for entry in left])})

    def index(self, split: str) -> IndexEntry | None:
        """Return the index of a split; None if an earlier version wrote the set."""
        entry = self.tree["splits"][split].get("index")
        return None if entry is None else IndexEntry(**entry)

    def subjects(self, split: str) -> list[dict[str, str]]:
        """Return the subjects of a split, each with the keys `cohort` and `subject`."""
        return self.tree["splits"][split]["subjects"]

    @property
    def subjects_of_all_splits(self) -> set[tuple[str, str]]:
        """(cohort, subject) of each subject that has samples."""
        return {(tree["cohort"], tree["subject"]) for split in SPLITS for tree in self.subjects(split)}

    @property
    def cohorts(self) -> dict[str, dict[str, Any]]:
        """Configuration of each cohort in the set, by name."""
        return {cohort["name"]: cohort for cohort in self.tree["config"]["cohorts"]}

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Subjects that were left out: cohort, subject, problems (field, check, and in some cases reason)."""
        return self.tree["skipped"]

    @property
    def doubts(self) -> list[dict[str, Any]]:
        """Subjects that are in the set although something may be wrong with them: cohort, subject, problems."""
        return self.tree["doubts"]

    @property
    def sources(self) -> list[dict[str, str]]:
        """Source files of each subject: cohort, subject, and per field the result of `describe_sources`."""
        return self.tree["sources"]

    @property
    def contrasts(self) -> tuple[str, ...] | None:
        """The contrasts of the set; None if that of a cohort is not known, as in manifests of earlier versions."""
        known = self.tree.get("contrasts", {})
        contrasts = {known.get(name) for name in self.cohorts}
        return None if None in contrasts else tuple(sorted(contrasts))

    @property
    def skull_stripped(self) -> bool | None:
        """Whether all scans show brains without skull; None if some do, or if an earlier version wrote the manifest."""
        known = self.tree.get("skull_stripped", {})
        found = {known.get(name) for name in self.cohorts}
        return {frozenset({"all"}): True, frozenset({"none"}): False}.get(frozenset(found))

    @property
    def unlike_pairs(self) -> list[dict[str, Any]]:
        """Real pairs whose similarity after alignment is below the limit or far below that of their cohort."""
        by_cohort: dict[str, list[dict[str, Any]]] = {}
        for pair in self.tree["alignments"]:
            by_cohort.setdefault(pair["cohort"], []).append(pair)
        unlike: list[dict[str, Any]] = []
        for pairs in by_cohort.values():
            usual = median(pair["similarity_after"] for pair in pairs)
            least = max(MIN_SIMILARITY, MIN_SHARE_OF_USUAL * usual)
            unlike += [pair for pair in pairs if pair["similarity_after"] < least]
        return unlike


def hash_tree(tree: Any) -> str:
    """Compute the sha256 of a tree of plain values, as hex digits; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def hash_manifest(tree: dict[str, Any]) -> str:
    """Compute the hash of a manifest without `manifest_sha256`, which is this hash and reveals any edit."""
    return hash_tree({key: value for key, value in tree.items() if key != "manifest_sha256"})


def is_unfinished(out: Path) -> bool:
    """Return whether `out` holds a build that has begun and is not complete."""
    return (out / JOURNAL / JOURNAL_CONFIG).is_file()


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a shard set.

    Raises:
        ShardSetError: the build is unfinished, there is no set, or the manifest cannot be read or has another version.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ShardSetError(_explain_missing(root))
    return parse_manifest(path.read_bytes(), str(path))


def _explain_missing(root: Path) -> str:
    """Return why a folder holds no finished shard set, and what to do."""
    if is_unfinished(root):
        return f"{root / MANIFEST}: the shard set is not finished. Run upfield shard to build it."
    if not root.exists():
        return (
            f"{root}: there is no shard set here, and the folder does not exist. Check the path, or run upfield shard."
        )
    if (found := recognise(root)) is None:
        return f"{root / MANIFEST}: there is no shard set here. Run upfield shard to build it."
    if found.kind == "a part of a shard set":
        return f"{root} is only a part of a shard set. Name the folder of the set, {shown_whole(found)}."
    configs = {"the folder of a cohort": root / COHORTS, "a configuration file": root}
    if found.kind in configs:
        command = f"upfield shard --config {configs[found.kind]} --out SHARDS"
        return f"{root} is {found.kind}, not a shard set. Build one with {command}, and name SHARDS."
    return f"{root} is {found.kind}, not a shard set. Name the folder that upfield shard wrote."


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse the bytes of a manifest, read from a folder or from a store.

    Args:
        data: the whole file.
        where: path or address of the file, for error messages.

    Raises:
        ShardSetError: this is not a manifest, or one of another format version.
    """
    try:
        tree = json.loads(data)
        found = (tree["format"], tree["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardSetError(
            f"{where}: this is not the manifest of a shard set ({type(error).__name__}: {error}). Choose another place."
        ) from error
    if found != (FORMAT, VERSION):
        raise ShardSetError(
            f"{where}: expected {FORMAT} version {VERSION}, found {found[0]} version {found[1]}. "
            "Build the set again, or choose another place."
        )
    return Manifest(tree)
