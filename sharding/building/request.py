"""Compare what a build is asked for with what its folder holds, and refuse what does not fit together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upfield.common.errors import InputError, ShardSetError
from upfield.sharding.building.journal import JOURNAL, begun_config, finish, has_records
from upfield.sharding.building.saved_volumes import are_missing
from upfield.sharding.cohorts.privacy import Pseudonyms
from upfield.sharding.cohorts.source_fingerprints import find_changed_subjects
from upfield.sharding.cohorts.subjects import CohortFiles, Source, Subject
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.manifest import MANIFEST, Manifest, content_config, read_manifest


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for, beside what its folder holds already."""

    config: ShardConfig
    """The configuration of this build."""
    out: Path
    """Folder of the set."""
    pseudonyms: Pseudonyms | None
    """What stands in shards in place of names."""
    files: CohortFiles
    """The subjects of all cohorts in the configuration."""
    content: dict[str, Any]
    """Configuration of the set to be, as its manifest states it: the cohorts that it has, then the new ones."""
    new_cohorts: set[str]
    """Names of the cohorts that the set does not have yet."""
    old: Manifest | None
    """Manifest of the complete set that is extended."""

    @property
    def new_subjects(self) -> list[Subject[Source]]:
        """Subjects of the new cohorts."""
        return [subject for subject in self.files.subjects if subject.cohort in self.new_cohorts]

    @property
    def unsaved_subjects(self) -> list[Subject[Source]]:
        """Subjects of the complete set whose volumes are to be saved and have not been."""
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
    """Raise InputError if `out` holds something else than a set; nothing in it is touched."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: this is a file, not a folder. Choose another --out.")
    others = sorted(out.iterdir()) if out.is_dir() else []
    if others and not any((out / name).exists() for name in (MANIFEST, JOURNAL)):
        raise InputError(f"{out}: this folder holds {others[0].name} and is no shard set. Choose another --out.")


def compare_with_folder(
    config: ShardConfig, out: Path, files: CohortFiles, pseudonyms: Pseudonyms | None
) -> BuildRequest:
    """Find what is new in a configuration, and refuse it if it does not fit the set or the unfinished build in `out`.

    The lock of the build must be held.

    Args:
        config: the configuration.
        out: folder of the set.
        files: the subjects of its cohorts.
        pseudonyms: what stands in shards in place of names.

    Raises:
        ShardSetError: `out` holds a set or an unfinished build of another configuration, of other subjects, or of
            other files.
    """
    old = read_manifest(out) if (out / MANIFEST).is_file() else None
    if old and begun_config(out) == old.tree["config"]:
        # The build was killed after it wrote its manifest and before it emptied its journal.
        finish(out)
    content = content_config(config, pseudonyms)
    held = old.cohorts if old else {}
    if old:
        _refuse_difference(out, old.tree["config"], content)
    new = [cohort for cohort in content["cohorts"] if cohort["name"] not in held]
    content |= {"cohorts": [*held.values(), *new]}
    if new:
        _refuse_other_journal(out, content)
    request = BuildRequest(config, out, pseudonyms, files, content, {cohort["name"] for cohort in new}, old)
    if old:
        _refuse_other_subjects(request, old)
        _refuse_changed_files(request, old)
    return request


def _refuse_other_journal(out: Path, content: dict[str, Any]) -> None:
    """Raise ShardSetError if the unfinished build in `out` is of another configuration and has done some work."""
    begun = begun_config(out)
    if begun is None or not has_records(out):
        return
    _refuse_difference(out / JOURNAL, begun, content)
    names = [[cohort["name"] for cohort in tree["cohorts"]] for tree in (begun, content)]
    if names[0] != names[1]:
        raise ShardSetError(
            f"{out / JOURNAL}: expected the cohorts of the unfinished build, {names[0]}, found {names[1]}. "
            "Use those, or remove this folder to drop the unfinished work."
        )


def _refuse_difference(out: Path, there: dict[str, Any], asked: dict[str, Any], where: str = "") -> None:
    """Compare two configurations, cohorts that both have by name."""
    for key in sorted((there.keys() | asked.keys()) - {"cohorts"}):
        if there.get(key) == asked.get(key):
            continue
        if isinstance(there.get(key), dict) and isinstance(asked.get(key), dict) and key != "split":
            _refuse_difference(out, there[key], asked[key], f"{where}{key}.")
        if key == "pseudonymize":
            problem = "was built with another pseudonym key or with none"
            remedy = "Use the --pseudonym_key that it was built with"
        else:
            problem = f"was built with another value of {where}{key}: {there.get(key)} there, {asked.get(key)} now"
            remedy = "Build into a new folder"
        if out.name == JOURNAL:
            remedy += ", or remove this one to drop the unfinished work"
        raise ShardSetError(f"{out}: the set {problem}. {remedy}.")
    cohorts = [{cohort["name"]: cohort for cohort in tree.get("cohorts", [])} for tree in (there, asked)]
    for name in sorted(cohorts[0].keys() & cohorts[1].keys()):
        _refuse_difference(out, cohorts[0][name], cohorts[1][name], f"cohorts.{name}.")


def _refuse_other_subjects(request: BuildRequest, old: Manifest) -> None:
    """Raise ShardSetError if a cohort that the set has now has other subjects than the set lists."""
    there = {(s.cohort, s.id) for s in request.files.subjects if s.cohort not in request.new_cohorts}
    cohorts = {cohort for cohort, _ in there}
    held = {(cohort, subject) for cohort, subject in old.subjects_of_all_splits if cohort in cohorts}
    skipped = {(tree["cohort"], tree["subject"]) for tree in old.skipped}
    for odd, what, remedy in (
        (there - held - skipped, "more", "Add them as a cohort of their own"),
        (held - there, "fewer", "Bring their files back"),
    ):
        if odd:
            raise ShardSetError(
                f"{request.out}: expected the {len(held)} subjects it was built from, found {len(odd)} {what} "
                f"({_some(sorted(subject for _, subject in odd))}). {remedy}, or build into a new folder."
            )


def _refuse_changed_files(request: BuildRequest, old: Manifest) -> None:
    """Raise ShardSetError if files that the set was built from hold something else by now."""
    changed = find_changed_subjects(request.files.subjects, old, request.pseudonyms, request.config.jobs)
    if changed:
        names = [f"{subject.cohort} {subject.name}" for subject in changed]
        raise ShardSetError(
            f"{request.out}: the files of {len(names)} subjects have changed since the set was built ({_some(names)}). "
            "Bring the old files back, or build into a new folder."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
