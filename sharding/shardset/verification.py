"""Check a shard set against its manifest and index.

The check reports every problem, not only the first, so that a set that was copied badly can be repaired file by file.
"""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from upfield.common.errors import ShardSetError
from upfield.common.files import hash_file
from upfield.common.progress import say, track
from upfield.imaging.normalisation import NORMALISATION
from upfield.sharding.configuration import VerifyConfig
from upfield.sharding.shardset.manifest import (
    JOURNAL,
    MANIFEST,
    Manifest,
    hash_manifest,
    hash_tree,
    is_unfinished,
    read_manifest,
)
from upfield.sharding.shardset.namesakes import find_namesakes, members_of, namesakes_message
from upfield.sharding.shardset.sample_key import SPLITS, Unit
from upfield.sharding.shardset.shard_index import INDEX_VERSION, MEMBERS, SUFFIXES, ShardEntry

SHARD_NAME = {split: re.compile(rf"{split}/\d{{6}}") for split in SPLITS}
# From +0 upwards, the bit patterns of float16 ascend with the value. One comparison of bits therefore finds all values
# that are above 1, negative, infinite or NaN, in a fraction of the time that numpy takes for half-precision numbers.
# Minus zero is the exception.
ONE_BITS = np.float16(1).view(np.uint16)
MINUS_ZERO_BITS = np.float16(-0.0).view(np.uint16)


def verify_set(config: VerifyConfig) -> None:
    """Check a set and print a line for each problem, or one line if there is none.

    Raises:
        ShardSetError: the set does not match its manifest, or has none.
    """
    root = config.shards
    verification = Verification(root, read_manifest(root), config.quick)
    problems: list[str] = []
    for problem in verification.problems():
        print(problem, flush=True)
        problems.append(problem)
    if problems:
        raise ShardSetError(
            f"{root}: found {len(problems)} problem{'s' if len(problems) > 1 else ''}, the first: {problems[0]}. "
            + ("Run upfield shard again to finish the set." if is_unfinished(root) else "Copy or build the set again.")
        )
    if namesakes := find_namesakes(members_of(verification.manifest)):
        say(f"{root}: {namesakes_message(namesakes)}")
    print(
        f"{root}: {len(verification.key_shards)} samples of {len(verification.subject_splits)} subjects match the "
        f"manifest{' (hashes and voxels were not read)' if config.quick else ''}"
    )


@dataclass
class Verification:
    """One check of a set. It keeps the keys and subjects seen so far, because some problems only show across shards."""

    root: Path
    """Folder of the set."""
    manifest: Manifest
    """Manifest of the set, with which the files are compared."""
    quick: bool = False
    """Skip the hashes and the voxel values."""
    key_shards: dict[str, Path] = field(default_factory=dict)
    """Key of each sample seen so far -> its shard."""
    subject_splits: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """(cohort, subject) of each sample seen so far -> the splits that hold samples of it."""

    def problems(self) -> Iterator[str]:
        """Check the whole set and yield a line for each problem; it begins with the path of the file."""
        path = self.root / MANIFEST
        try:
            yield from (f"{path}: {problem}" for problem in manifest_problems(self.manifest))
            listed = listed_splits(self.manifest)
            left_out = {(tree["cohort"], tree["subject"]) for tree in self.manifest.skipped}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield f"{path}: this is not a valid manifest ({type(error).__name__}: {error})"
            return
        entries = [(split, entry) for split in SPLITS for entry in self.manifest.shards(split)]
        if is_unfinished(self.root):
            yield f"{self.root / JOURNAL}: an extension of this set is not finished"
        yield from extra_files(self.root, [entry for _, entry in entries])
        for split, entry in track(entries, "shards", len(entries)):
            yield from self._shard(split, entry)
        yield from (f"{path}: {problem}" for problem in split_problems(listed, self.subject_splits))
        for cohort, subject in sorted(left_out & self.subject_splits.keys()):
            yield f"{path}: {cohort} {subject} is listed as left out, but has samples"

    def _shard(self, split: str, entry: ShardEntry) -> Iterator[str]:
        tar, index = (self.root / f"{entry.name}{suffix}" for suffix in SUFFIXES)
        for path in (tar, index):
            if not path.is_file():
                yield f"{path}: the manifest lists this file, but it is missing"
        if not tar.is_file():
            return
        if (size := tar.stat().st_size) != entry.bytes:
            yield f"{tar}: expected {entry.bytes} bytes, found {size}"
        elif not self.quick and (sha256 := hash_file(tar)) != entry.sha256:
            yield f"{tar}: expected sha256 {entry.sha256}, found {sha256}"
        try:
            with tarfile.open(tar, "r:") as file:
                members = file.getmembers()
        except (tarfile.TarError, OSError) as error:
            yield f"{tar}: this is not a complete tar file: {error}"
            return
        samples = [members[start : start + len(MEMBERS)] for start in range(0, len(members), len(MEMBERS))]
        if len(samples) != entry.samples:
            yield f"{tar}: expected {entry.samples} samples, found {len(samples)}"
        if index.is_file():
            yield from (f"{index}: {problem}" for problem in index_problems(index, samples))
        with tar.open("rb") as file:
            for sample in samples:
                yield from (f"{tar}: {sample[0].name}: {problem}" for problem in self._sample(split, tar, file, sample))

    def _sample(self, split: str, tar: Path, file: BinaryIO, sample: list[tarfile.TarInfo]) -> Iterator[str]:
        key = sample[0].name.partition(".")[0]
        names = [member.name for member in sample]
        if names != [f"{key}.{suffix}" for suffix in MEMBERS]:
            yield f"expected the members {', '.join(MEMBERS)} of one sample, found {', '.join(names)}"
            return
        if key in self.key_shards:
            yield f"this key is also in {self.key_shards[key]}"
        self.key_shards[key] = tar
        low, high, record = sample
        for name, member in (("low", low), ("high", high)):
            if problem := array_problem(file, member, self.manifest.sample_shape(name), self.quick):
                yield f"{name}: {problem}"
        try:
            unit, slice_key = read_record(file, record)
        except (KeyError, TypeError, ValueError) as error:
            yield f"json: cohort, subject, kind, variant or slice is missing or wrong ({type(error).__name__}: {error})"
            return
        if slice_key != key:
            yield f"json: this is the record of another sample, {slice_key}"
        self.subject_splits[unit.cohort, unit.subject].add(split)


def manifest_problems(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each hash, count, name or shape in a manifest that contradicts the rest of the manifest."""
    tree = manifest.tree
    entries = {split: manifest.shards(split) for split in SPLITS}
    by_name = sorted((entry for split in SPLITS for entry in entries[split]), key=lambda entry: entry.name)
    height, width = tree["config"]["geometry"]["high_shape"][1:]
    pairs: list[tuple[str, Any, Any]] = [
        ("config_sha256", tree["config_sha256"], hash_tree(tree["config"])),
        ("manifest_sha256", tree["manifest_sha256"], hash_manifest(tree)),
        ("data_sha256", manifest.data_sha256, hash_tree([entry.sha256 for entry in by_name])),
        ("normalisation", manifest.normalisation, NORMALISATION),
        ("sample.low.shape", manifest.sample_shape("low"), (1 + 2 * manifest.context, height, width)),
        ("sample.high.shape", manifest.sample_shape("high"), (1, height, width)),
        ("sample dtypes", [tree["sample"][member]["dtype"] for member in ("low", "high")], ["float16", "float16"]),
    ]
    for split, listed in entries.items():
        names = [entry.name for entry in listed]
        # Shard numbers have a gap where all subjects of a block were left out.
        pairs.append((f"splits.{split}.shards", names, sorted(n for n in set(names) if SHARD_NAME[split].fullmatch(n))))
        pairs.append((f"splits.{split}.samples", tree["splits"][split]["samples"], sum(e.samples for e in listed)))
    for name, stated, computed in pairs:
        if stated != computed:
            yield f"{name}: expected {computed}, computed from the rest of the manifest, found {stated}"


def extra_files(root: Path, entries: list[ShardEntry]) -> Iterator[str]:
    """Yield a line for each shard and index below `root` that is not listed, leftovers of a killed build included."""
    listed = {root / f"{entry.name}{suffix}" for entry in entries for suffix in SUFFIXES}
    found = {path for path in root.rglob("*") if path.suffix in SUFFIXES}
    for path in sorted(found - listed):
        yield f"{path}: the manifest does not list this file, so move it out of the set"


def index_problems(index: Path, samples: list[list[tarfile.TarInfo]]) -> Iterator[str]:
    """Yield the first difference between an index and the members of its tar: a line, or the number of lines."""
    expected = [f"{INDEX_VERSION} {len(samples)}"]
    for sample in samples:
        expected.append(" ".join(f"{m.name.partition('.')[2]} {m.offset_data} {m.size} {m.name}" for m in sample))
    found = index.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, (right, line) in enumerate(zip(expected, found, strict=False), start=1):
        if line != right:
            yield f"line {number}: expected {right!r}, as in the tar, found {line!r}"
            return
    if len(found) != len(expected):
        yield f"expected {len(expected)} lines, found {len(found)}"


def array_problem(file: BinaryIO, member: tarfile.TarInfo, shape: tuple[int, ...], quick: bool) -> str | None:
    """Describe what is wrong with an npy member that should hold float16 of `shape` in [0, 1].

    Args:
        file: the tar.
        member: the member, with its position in the tar.
        shape: shape of the array in the manifest.
        quick: check the header only.

    Returns:
        The first problem, or None.
    """
    file.seek(member.offset_data)
    try:
        version = np.lib.format.read_magic(file)
        found, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, SyntaxError, TokenError) as error:
        # A flipped bit in the header's text can cause any of these errors.
        return f"this is not an npy header: {error}"
    if (version, found, fortran_order, dtype) != ((1, 0), shape, False, np.float16):
        return f"expected float16 {shape} in C order, npy (1, 0), found {dtype} {found}, npy {version}"
    size, expected = member.offset_data + member.size - file.tell(), int(np.prod(shape)) * dtype.itemsize
    if size != expected:
        return f"expected {expected} bytes of voxels, found {size}"
    if quick:
        return None
    bits = np.frombuffer(file.read(size), dtype=np.uint16)
    outside = (bits > ONE_BITS) & (bits != MINUS_ZERO_BITS)
    if not outside.any():
        return None
    return f"expected values in 0..1, found {outside.sum()} outside, for example {bits[outside][0].view(np.float16)}"


def read_record(file: BinaryIO, member: tarfile.TarInfo) -> tuple[Unit, str]:
    """Read a sample's record; return its unit, and the key that the sample should have."""
    file.seek(member.offset_data)
    record = json.loads(file.read(member.size))
    unit = Unit(record["cohort"], record["subject"], record["kind"], record["variant"])
    return unit, unit.key(record["slice"])


def listed_splits(manifest: Manifest) -> dict[tuple[str, str], set[str]]:
    """Return, for each (cohort, subject), the splits in which the manifest lists it."""
    listed: dict[tuple[str, str], set[str]] = defaultdict(set)
    for split in SPLITS:
        for subject in manifest.subjects(split):
            listed[subject["cohort"], subject["subject"]].add(split)
    return listed


def split_problems(listed: dict[tuple[str, str], set[str]], held: dict[tuple[str, str], set[str]]) -> Iterator[str]:
    """Yield a line for each subject that is not listed in exactly one split, the one that holds all its samples.

    Args:
        listed: (cohort, subject) -> splits in which the manifest lists it.
        held: (cohort, subject) -> splits that hold samples of it.
    """
    for cohort, subject in sorted(listed.keys() | held.keys()):
        in_manifest, in_shards = (sorted(splits.get((cohort, subject), ())) for splits in (listed, held))
        if len(in_manifest) != 1 or in_manifest != in_shards:
            yield (
                f"{cohort} {subject}: must be listed in one split that holds all its samples, but is listed in "
                f"{in_manifest or 'none'} and has samples in {in_shards or 'none'}"
            )
