"""Compare a requested build with the contents of its folder, and refuse requests that do not fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError, ShardSetError
from upfield.common.tables import counted
from upfield.sharding.building.index_writer import read_old_index
from upfield.sharding.building.journal import begun_config, finish, has_records
from upfield.sharding.building.manifest_writer import content_config
from upfield.sharding.building.saved_volumes import are_missing
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.source_fingerprints import find_changed_subjects
from upfield.sharding.cohorts.subjects import CohortFiles, Source, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.manifest import JOURNAL, MANIFEST, Manifest, read_manifest
from upfield.sharding.shardset.sample_key import SPLITS

# Settings that older sets do not state -> the value that they were built with.
ADDED_LATER = {"average": False}


@dataclass(frozen=True)
class BuildRequest:
    """A requested build, together with the set that its folder already holds."""

    config: ShardConfig
    """The configuration of this build."""
    out: Path
    """Folder of the set."""
    pseudonyms: Pseudonyms | None
    """Pseudonyms that replace the names in shards; None keeps the names."""
    files: CohortFiles
    """The subjects of all cohorts in the configuration."""
    content: dict[str, Any]
    """Configuration of the resulting set, as its manifest will state it: first the present cohorts, then the new."""
    new_cohorts: set[str]
    """Names of the cohorts that the set does not have yet."""
    old: Manifest | None
    """Manifest of the complete set that is extended; None for a new set."""

    @property
    def new_subjects(self) -> list[Subject[Source]]:
        """Subjects of the new cohorts."""
        return [subject for subject in self.files.subjects if subject.cohort in self.new_cohorts]

    @property
    def unsaved_subjects(self) -> list[Subject[Source]]:
        """Subjects of the complete set whose volumes are to be saved and are not saved yet."""
        folder = self.config.save_volumes
        if folder is None or self.old is None:
            return []
        held = self.old.subjects_of_all_splits
        return [s for s in self.files.subjects if (s.cohort, s.id) in held and are_missing(folder, s)]

    @property
    def old_shards(self) -> list[str]:
        """Names of the complete set's shards."""
        splits = self.old.tree["splits"].values() if self.old else []
        return [shard["name"] for split in splits for shard in split["shards"]]

    @property
    def next_shards(self) -> dict[str, int]:
        """First free shard number of each split that has shards."""
        numbers: dict[str, int] = {}
        for name in self.old_shards:
            split, number = name.split("/")
            numbers[split] = max(numbers.get(split, 0), int(number) + 1)
        return numbers


def refuse_foreign_folder(out: Path) -> None:
    """Raise InputError if `out` holds something other than a shard set; nothing in it is changed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file, not a folder. Choose another --out.")
    others = sorted(out.iterdir()) if out.is_dir() else []
    if others and not any((out / name).exists() for name in (MANIFEST, JOURNAL)):
        raise InputError(f"{out}: this folder is not a shard set; it holds {others[0].name}. Choose another --out.")


def compare_with_folder(
    config: ShardConfig, out: Path, files: CohortFiles, pseudonyms: Pseudonyms | None
) -> BuildRequest:
    """Find the new cohorts of a configuration, and refuse it if it does not fit the set or unfinished build in `out`.

    The lock of the build must be held.

    Args:
        config: the configuration.
        out: folder of the set.
        files: the subjects of the configured cohorts.
        pseudonyms: replace the names in shards; None keeps the names.

    Raises:
        ShardSetError: `out` holds a set or an unfinished build with another configuration, other subjects or other
            files.
    """
    old = read_manifest(out) if (out / MANIFEST).is_file() else None
    if old and begun_config(out) == old.tree["config"]:
        # The build was killed after it wrote its manifest and before it emptied its journal.
        finish(out, old)
    content = content_config(config, pseudonyms)
    held = old.cohorts if old else {}
    if old:
        _refuse_difference(out, old.tree["config"], content)
    new = [cohort for cohort in content["cohorts"] if cohort["name"] not in held]
    content |= {"cohorts": [*held.values(), *new]}
    if new:
        _refuse_other_journal(out, content)
    if new and old:
        for split in SPLITS:
            # A damaged index is refused now, because the new index is made from it after all shards are written.
            read_old_index(out, old, split)
    request = BuildRequest(config, out, pseudonyms, files, content, {cohort["name"] for cohort in new}, old)
    if old:
        _refuse_other_subjects(request, old)
        _refuse_changed_files(request, old)
    return request


def _refuse_other_journal(out: Path, content: dict[str, Any]) -> None:
    """Raise ShardSetError if `out` has an unfinished build with another configuration that has recorded some blocks."""
    begun = begun_config(out)
    if begun is None or not has_records(out):
        return
    _refuse_difference(out / JOURNAL, begun, content)
    names = [[cohort["name"] for cohort in tree["cohorts"]] for tree in (begun, content)]
    if names[0] != names[1]:
        raise ShardSetError(
            f"{out / JOURNAL}: expected the cohorts of the unfinished build, {names[0]}, found {names[1]}. "
            "Use the same cohorts, or remove this folder to discard the unfinished work."
        )


def _refuse_difference(out: Path, built: dict[str, Any], requested: dict[str, Any], where: str = "") -> None:
    """Raise ShardSetError if two configurations differ. Cohorts that only one of them has are ignored."""
    for key in sorted((built.keys() | requested.keys()) - {"cohorts"}):
        if built.get(key, ADDED_LATER.get(key)) == requested.get(key):
            continue
        if key == "labels_as" and out.name == JOURNAL:
            # It is part of the digest of a block, so blocks that were built without it are built again.
            continue
        if key == "contrast" and None in (built.get(key), requested.get(key)):
            # It does not change the shards, so it may be stated later, or no longer.
            continue
        if isinstance(built.get(key), dict) and isinstance(requested.get(key), dict) and key != "split":
            _refuse_difference(out, built[key], requested[key], f"{where}{key}.")
            continue
        if key == "pseudonymize":
            problem = "was built with another pseudonym key or with none"
            remedy = "Use the --pseudonym_key that it was built with"
        else:
            problem = f"was built with {where}{key} = {built.get(key)}, but now it is {requested.get(key)}"
            remedy = "Build into a new folder"
        if out.name == JOURNAL:
            remedy += ", or remove this one to discard the unfinished work"
        raise ShardSetError(f"{out}: the set {problem}. {remedy}.")
    cohorts = [{cohort["name"]: cohort for cohort in tree.get("cohorts", [])} for tree in (built, requested)]
    for name in sorted(cohorts[0].keys() & cohorts[1].keys()):
        _refuse_difference(out, cohorts[0][name], cohorts[1][name], f"cohorts.{name}.")


def _refuse_other_subjects(request: BuildRequest, old: Manifest) -> None:
    """Raise ShardSetError if a cohort of the set no longer has the subjects that the manifest lists."""
    present = {(s.cohort, s.id) for s in request.files.subjects if s.cohort not in request.new_cohorts}
    cohorts = {cohort for cohort, _ in present}
    held = {(cohort, subject) for cohort, subject in old.subjects_of_all_splits if cohort in cohorts}
    skipped = {(tree["cohort"], tree["subject"]) for tree in old.skipped}
    for different, comparison, remedy in (
        (present - held - skipped, "more", "Add them as a separate cohort"),
        (held - present, "fewer", "Restore their files"),
    ):
        if different:
            raise ShardSetError(
                f"{request.out}: expected the {counted(len(held), 'subject')} that the set was built from, found "
                f"{len(different)} {comparison} ({_some(sorted(subject for _, subject in different))}). {remedy}, or "
                "build into a new folder."
            )


def _refuse_changed_files(request: BuildRequest, old: Manifest) -> None:
    """Raise ShardSetError if files that the set was built from have changed since."""
    changed = find_changed_subjects(request.files.subjects, old, request.pseudonyms, request.config.jobs)
    if changed:
        names = [f"{subject.cohort} {subject.name}" for subject in changed]
        raise ShardSetError(
            f"{request.out}: the files of {counted(len(names), 'subject')} have changed since the set was "
            f"built ({_some(names)}). Restore the old files, or build into a new folder."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
