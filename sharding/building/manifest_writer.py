"""Write the manifest of a set, with the subjects and shards that a build adds to it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upfield.common.command import to_tree
from upfield.common.files import write_json
from upfield.imaging.normalisation import NORMALISATION
from upfield.sharding.building.index_writer import write_indices
from upfield.sharding.cohorts.privacy import Pseudonyms, public_cohort
from upfield.sharding.cohorts.subjects import Subject
from upfield.sharding.configuration import LAWS, ShardConfig
from upfield.sharding.shardset.manifest import FORMAT, MANIFEST, VERSION, Manifest, hash_manifest, hash_tree
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_writer import WrittenShard
from upfield.sharding.shardset.split_index import IndexEntry

# Settings that say where or how a set is built, and do not change its content.
NOT_CONTENT = ("out", "root", "jobs", "executor", "on_error", "max_skipped", "save_volumes", "pseudonym_key")
# Settings of a cohort of label maps that change its samples.
MAP_SETTINGS = ("labels_as", "recipe", "keep_labels", "heads", *LAWS)


@dataclass(frozen=True)
class Addition:
    """Subjects and shards that one build adds to a set; the first build adds them to an empty set."""

    subjects: list[Subject]
    """Subjects whose samples are in the new shards."""
    shards: list[WrittenShard]
    """The new shards, in order."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Subjects that were left out."""
    doubts: list[dict[str, Any]] = field(default_factory=list)
    """Subjects that are included although something may be wrong with them."""
    alignments: list[dict[str, Any]] = field(default_factory=list)
    """How real pairs were aligned."""
    sources: list[dict[str, str]] = field(default_factory=list)
    """Source files of each subject: cohort, subject, fingerprints of its files by field."""
    stripped: dict[str, str] = field(default_factory=dict)
    """Whether `all`, `some` or `none` of the volumes of each cohort are skull-stripped."""
    contrasts: dict[str, str | None] = field(default_factory=dict)
    """Contrast of each cohort; None if it is not known."""


def content_config(config: ShardConfig, pseudonyms: Pseudonyms | None = None) -> dict[str, Any]:
    """Return the part of a configuration that determines a set's content, without private details."""
    tree = {key: value for key, value in to_tree(config).items() if key not in (*NOT_CONTENT, "keep_labels")}
    heads = tree["synthetic"].pop("heads")
    # Only the ranges of laws that are used determine the content.
    ranges = {law: tree["synthetic"].pop(law) for law in LAWS if law in tree["synthetic"]}
    tree["synthetic"]["recipe"] = config.synthetic.recipe_for(maps=False)
    tree["synthetic"] |= {law: ranges[law] for law in config.synthetic.laws(maps=False) if law in ranges}
    tree["cohorts"] = [
        _map_cohort(cohort, config, ranges, heads) if cohort["labels"] else _scan_cohort(cohort)
        for cohort in (public_cohort(cohort, pseudonyms) for cohort in tree["cohorts"])
    ]
    if pseudonyms:
        # The hash of the key is recorded, so that no later build extends the set with another key.
        tree["pseudonymize"] = pseudonyms.seal("key")
    return tree


def _scan_cohort(cohort: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only cohorts of label maps state, as in sets of earlier versions."""
    return {key: value for key, value in cohort.items() if key not in ("labels", "labels_as")}


def _map_cohort(
    cohort: dict[str, Any], config: ShardConfig, ranges: dict[str, Any], heads: dict[str, Any]
) -> dict[str, Any]:
    """Add the settings that only concern cohorts of label maps, so that such a cohort can be added to any set."""
    recipe = config.synthetic.recipe_for(maps=True)
    # Keys of JSON objects are text.
    labels_as = {str(number): meaning for number, meaning in cohort["labels_as"].items()}
    settings = {"labels_as": labels_as, "recipe": recipe, "keep_labels": config.keep_labels, "heads": heads}
    return cohort | settings | {law: ranges[law] for law in config.synthetic.laws(maps=True) if law in ranges}


def write_manifest(root: Path, content: dict[str, Any], addition: Addition, old: Manifest | None) -> Manifest:
    """Write the indices of the splits, and then the manifest of a set whose shards are all in place.

    Args:
        root: folder of the set.
        content: configuration of the set, with all its cohorts, old ones first.
        addition: subjects and shards of this build.
        old: manifest of the set that was extended, or None.

    Returns:
        The new manifest.
    """
    indices = write_indices(root, addition.shards, old)
    _, height, width = content["geometry"]["high_shape"]
    splits = {split: _split_tree(split, addition, old, indices.get(split)) for split in SPLITS}
    shards = [shard for split in sorted(SPLITS) for shard in splits[split]["shards"]]
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "config": content,
        "config_sha256": hash_tree(content),
        "data_sha256": hash_tree([shard["sha256"] for shard in shards]),
        "normalisation": NORMALISATION,
        "sample": {
            "low": {"shape": [1 + 2 * content["context"], height, width], "dtype": "float16"},
            "high": {"shape": [1, height, width], "dtype": "float16"},
        }
        | _labels_tree(content, height, width),
        "splits": splits,
        "skipped": [*(old.skipped if old else []), *addition.skipped],
        "doubts": [*(old.tree["doubts"] if old else []), *addition.doubts],
        "alignments": [*(old.tree["alignments"] if old else []), *addition.alignments],
        "sources": [*(old.sources if old else []), *addition.sources],
        "contrasts": _known(addition.contrasts) | (_known(old.tree.get("contrasts", {})) if old else {}),
        "skull_stripped": (old.tree.get("skull_stripped", {}) if old else {}) | addition.stripped,
    }
    tree["manifest_sha256"] = hash_manifest(tree)
    write_json(root / MANIFEST, tree)
    return Manifest(tree)


def _labels_tree(content: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Describe the labels of a sample, if some cohorts have them."""
    kept = any(cohort.get("keep_labels") for cohort in content["cohorts"])
    return {"labels": {"shape": [1, height, width], "dtype": "int16"}} if kept else {}


def _known(contrasts: dict[str, str | None]) -> dict[str, str]:
    return {cohort: contrast for cohort, contrast in contrasts.items() if contrast is not None}


def _split_tree(split: str, addition: Addition, old: Manifest | None, index: IndexEntry | None) -> dict[str, Any]:
    subjects = [{"cohort": s.cohort, "subject": s.id} for s in addition.subjects if s.split == split]
    shards = [asdict(shard.entry) for shard in addition.shards if shard.entry.name.startswith(f"{split}/")]
    if old:
        subjects, shards = old.subjects(split) + subjects, [asdict(entry) for entry in old.shards(split)] + shards
    tree = {"samples": sum(shard["samples"] for shard in shards), "subjects": subjects, "shards": shards}
    return tree | ({"index": asdict(index)} if index else {})
