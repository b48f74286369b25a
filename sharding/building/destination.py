"""Build a set in a folder, or in a staging folder that is then uploaded to an address."""

import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from upfield.common.addresses import format_address, is_address, is_remote
from upfield.common.command import Command, parse
from upfield.common.errors import InputError, ShardSetError, refused_arguments
from upfield.common.files import make_writable_folder
from upfield.common.progress import say
from upfield.common.tables import MOST_ROWS, PLAIN_WIDTH, counted, terminal_width
from upfield.sharding.building.build import build
from upfield.sharding.building.journal import lock_build
from upfield.sharding.building.upload import fetch_manifest, remove_staging, staging_folder, upload_set
from upfield.sharding.cohorts.privacy import Pseudonyms, open_key
from upfield.sharding.cohorts.problems import MAX_EQUAL_ROWS
from upfield.sharding.configuration import ShardConfig
from upfield.sharding.shardset.manifest import MANIFEST, Manifest, is_unfinished, read_manifest
from upfield.sharding.shardset.namesakes import find_namesakes, members_of, namesakes_message
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_set import ShardSet, open_shards


def build_shards(
    config: ShardConfig | str | Path,
    out: str | Path | None = None,
    *,
    root: str | Path | None = None,
    jobs: int | None = None,
) -> ShardSet:
    """Build a shard set, finish an interrupted build, or extend a set, as `upfield shard` does.

    Progress and warnings are printed on stderr. With several processes, a script must call this below
    `if __name__ == "__main__":`, because each process imports the script.

    Args:
        config: the configuration, or the path of a file such as `cohorts.yaml`.
        out: folder or address of the set. By default, the configuration names it.
        root: folder that relative patterns start from. By default, this is the folder of the file, or `config.root`, or
            the current folder.
        jobs: number of processes; 0 is one per core. By default, the configuration states it.

    Returns:
        The finished set.

    Raises:
        InputError: the configuration or the files cannot be used, or `out` holds another set.
        RunError: the disk is full, processes were killed, or the upload was interrupted.

    Examples:
        >>> import upfield
        >>> cohort = upfield.CohortConfig(
        ...     name="ixi", high="IXI-T1/{subject}-{site}-{scan}-T1.nii.gz", split={"val": 1, "test": 1}
        ... )
        >>> grids = upfield.GeometryConfig(low_shape=(12, 14, 6), high_shape=(20, 24, 28))
        >>> config = upfield.ShardConfig(out="ixi-shards", cohorts=[cohort], geometry=grids, jobs=1)
        >>> shards = upfield.build_shards(config)
        >>> [len(shards.split(name)) for name in ("train", "val", "test")]
        [20, 20, 20]
        >>> len(upfield.build_shards("cohorts.yaml", "all-shards", jobs=1).split("train"))
        180
    """
    if not isinstance(config, ShardConfig):
        config = _read_configuration(Path(config), out)
    given = {"out": out and str(out), "root": root and Path(root), "jobs": jobs}
    with refused_arguments():
        config = replace(config, **{name: value for name, value in given.items() if value is not None})
    build_at_destination(config)
    return open_shards(config.out)


def _read_configuration(file: Path, out: str | Path | None) -> ShardConfig:
    """Read the file of a configuration as `upfield shard --config FILE` does.

    Raises:
        InputError: the file cannot be read, or its values do not fit.
    """
    # The schema of the command belongs to its entry script, which imports this module when it runs.
    command = Command("shard", ShardConfig, lambda _: None, folder_of={"root": "cohorts"})
    return parse(command, ["--config", str(file), *(["--out", str(out)] if out is not None else [])])


def build_at_destination(config: ShardConfig) -> Manifest:
    """Build the set that `config` describes at `config.out`, and return its manifest.

    Raises:
        InputError: the configuration, the files or the destination cannot be used.
        RunError: the disk is full, workers were killed, or the upload was interrupted.
    """
    if is_address(config.out) and (not is_remote(config.out) or "://" not in config.out):
        raise InputError(f"--out: expected a folder or an address like s3://bucket/set, found {config.out}.")
    pseudonyms = _pseudonyms(config)
    if is_remote(config.out):
        return _build_and_upload(config, config.out, pseudonyms)
    build(config, Path(config.out), pseudonyms)
    return read_manifest(Path(config.out))


def _build_and_upload(config: ShardConfig, url: str, pseudonyms: Pseudonyms | None) -> Manifest:
    staging = staging_folder(url)
    make_writable_folder(staging.parent, "XDG_CACHE_HOME")
    # The lock is held until the staging folder is removed, because the set that was built must be the one that is sent.
    with lock_build(staging.with_name(f"{staging.name}.sending")):
        fetch_manifest(url, staging)
        try:
            build(config, staging, pseudonyms)
        except ShardSetError as error:
            # The user knows the set by its address, not by its staging folder.
            raise ShardSetError(
                re.sub(rf"^{re.escape(str(staging))}(?=: )", format_address(url), str(error))
            ) from error
        upload_set(staging, url)
        manifest = read_manifest(staging)
        remove_staging(staging)
    return manifest


def _pseudonyms(config: ShardConfig) -> Pseudonyms | None:
    """Read the key of the pseudonyms, or create one for a new set."""
    if not config.pseudonymize:
        return None
    if config.pseudonym_key is None and is_remote(config.out):
        raise InputError(
            f"--pseudonym_key is missing, and the default would put the key beside {format_address(config.out)}. "
            "Name a file on this machine."
        )
    out = Path(config.out).absolute()
    key = config.pseudonym_key or out.with_name(f"{out.name}.key")
    if not key.exists() and ((out / MANIFEST).exists() or is_unfinished(out)):
        raise InputError(
            f"{key}: the key that {out} was built with is missing, and a new key cannot recognise the set's subjects. "
            "Restore the file, or name its new place with --pseudonym_key."
        )
    return open_key(key)


def print_summary(place: str, manifest: Manifest) -> None:
    """Print what a set holds.

    Args:
        place: folder or address of the set.
        manifest: its manifest.
    """
    name = format_address(place) if is_remote(place) else place
    print(f"{name}: data {manifest.data_sha256[:12]}")
    for split in SPLITS:
        entries = manifest.shards(split)
        samples, size = sum(entry.samples for entry in entries), sum(entry.bytes for entry in entries)
        subjects = len(manifest.subjects(split))
        print(
            f"  {split:<5} {subjects:>5} subjects {samples:>8} samples {len(entries):>5} shards {size / 1e6:>9.1f} MB"
        )
        if not subjects:
            say(f"{name}: no subjects in {split}. Training needs train and val, evaluation needs test. Set `split`.")
    if manifest.skipped:
        print(f"  left out: {counted(len(manifest.skipped), 'subject')}. Fix them, and add them as a separate cohort.")
    _list_subjects(manifest.skipped)
    if manifest.doubts:
        print(f"  in doubt: {counted(len(manifest.doubts), 'subject')}. Check them with upfield preview.")
    _list_subjects(manifest.doubts)
    if namesakes := find_namesakes(members_of(manifest)):
        print(f"  {namesakes_message(namesakes)}")
    for pair in manifest.unlike_pairs:
        print(
            f"  low similarity: {pair['cohort']} {pair['subject']}: {pair['similarity_before']:z.3f} before alignment, "
            f"{pair['similarity_after']:z.3f} after. Check it with upfield preview."
        )


def _list_subjects(trees: list[dict[str, Any]]) -> None:
    """Print a line for each subject, or one line for many subjects of a cohort that have the same problems."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for tree in trees:
        reasons = [
            f"{problem['field']}: {problem.get('reason', problem['check'])}".removesuffix(".")
            for problem in tree["problems"]
        ]
        by_reason.setdefault((tree["cohort"], "; ".join(reasons)), []).append(tree["subject"])
    rows = []
    for (cohort, reason), subjects in by_reason.items():
        many = len(subjects) > MAX_EQUAL_ROWS
        for name in [f"{subjects[0]} and {len(subjects) - 1} others"] if many else subjects:
            rows.append(f"{cohort} {name}: {reason}")
    width = terminal_width(sys.stdout) or PLAIN_WIDTH
    for row in rows[:MOST_ROWS]:
        lines = textwrap.wrap(row, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)
        print("\n".join(lines))
    if len(rows) > MOST_ROWS:
        print(f"    ... and {len(rows) - MOST_ROWS} more, which {MANIFEST} lists too")
