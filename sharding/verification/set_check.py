"""Check a shard set against its manifest and index.

The check reports every problem, not only the first, so that a set that was copied badly can be repaired file by file.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upfield.common.addresses import is_remote
from upfield.common.errors import FetchError, InputError, RunError, ShardSetError
from upfield.common.files import write_json
from upfield.common.progress import say, track
from upfield.common.tables import MOST_ROWS, counted
from upfield.common.tasks import results_in_order
from upfield.imaging.normalisation import NORMALISATION
from upfield.sharding.configuration import VerifyConfig
from upfield.sharding.shardset.manifest import JOURNAL, MANIFEST, Manifest, hash_manifest, hash_tree
from upfield.sharding.shardset.namesakes import find_namesakes, members_of, namesakes_message
from upfield.sharding.shardset.sample_key import SPLITS
from upfield.sharding.shardset.shard_index import INDEX_VERSION, SUFFIXES, ShardEntry
from upfield.sharding.shardset.split_index import IndexEntry, SplitIndex
from upfield.sharding.verification.index_check import parse_listed_index, stretch_problems
from upfield.sharding.verification.set_sources import ScannedShard, SetSource, open_source, split_remedy
from upfield.sharding.verification.shard_scan import SampleLayout, ScannedSample

SHARD_NAME = {split: re.compile(rf"{split}/\d{{6}}") for split in SPLITS}
# A line that is not of an index can be long.
LONGEST_LINE = 300


def verify_set(config: VerifyConfig) -> None:
    """Check a set and print a line for each of the first 20 problems, or one line if there is none.

    If there are more problems, a JSON file beside the set lists all of them.

    Raises:
        ShardSetError: the set does not match its manifest, or has none.
        InputError: files may not be read, and there is no other problem.
        RunError: files could not be downloaded, and there is no other problem.
    """
    source = open_source(config.shards, config)
    verification = Verification(source, source.manifest(), config.quick)
    problems: list[str] = []
    for problem in verification.problems():
        if len(problems) < MOST_ROWS:
            print(problem, flush=True)
        problems.append(problem)
    if problems:
        count = f"found {counted(len(problems), 'problem')}{_write_long(problems, source)}, the first: {problems[0]}"
        if len(verification.unread) == len(problems):
            kind = RunError if any(isinstance(error, RunError) for error in verification.unread) else InputError
            raise kind(f"{source.name}: {count}. {split_remedy(verification.unread[0])[1]}")
        raise ShardSetError(f"{source.name}: {count}. {source.remedy}")
    if namesakes := find_namesakes(members_of(verification.manifest)):
        say(f"{source.name}: {namesakes_message(namesakes)}")
    left_out = "hashes and voxels were" if verification.knows_sizes else "sizes, hashes and voxels of the shards were"
    print(
        f"{source.name}: {counted(len(verification.key_shards), 'sample')} of "
        f"{counted(len(verification.subject_splits), 'subject')} match "
        f"the manifest{f' ({left_out} not read)' if config.quick else ''}"
    )


def _write_long(problems: list[str], source: SetSource) -> str:
    """Write a list of problems that is too long to be printed as JSON beside the set, and return where it is.

    The list of a remote set is written to the current folder.
    """
    if len(problems) <= MOST_ROWS:
        return ""
    place = Path(source.name)
    # Some file systems forbid the colon of a port in file names.
    name = place.name.replace(":", "_")
    path = (Path() if is_remote(source.name) else place.parent) / f"{name}.verify.json"
    try:
        write_json(path, {"shards": source.name, "problems": problems})
    except OSError as error:
        return f", of which {MOST_ROWS} are shown ({path} cannot be written: {error.strerror})"
    return f", all of which {path} lists"


@dataclass(frozen=True)
class ReadShard:
    """What could be read of a shard and its index."""

    tar: ScannedShard | None = None
    """The tar; None if it is missing, or if reading it failed."""
    index: bytes | None = None
    """The index; None if it is missing, or if reading it failed."""
    failure: InputError | RunError | None = None
    """Why reading failed; None if it did not fail."""


@dataclass
class Verification:
    """One check of a set. It keeps the keys and subjects seen so far, because some problems only show across shards."""

    source: SetSource
    """Files of the set."""
    manifest: Manifest
    """Manifest of the set, with which the files are compared."""
    quick: bool = False
    """Skip the hashes and the voxel values."""
    key_shards: dict[str, str] = field(default_factory=dict)
    """Key of each sample seen so far -> its shard."""
    subject_splits: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """(cohort, subject) of each sample seen so far -> the splits that hold samples of it."""
    indices: dict[str, SplitIndex] = field(default_factory=dict)
    """Index of each split that has one, if the index is the one that the manifest lists."""
    knows_sizes: bool = True
    """Whether the sizes of the files are known without reading them."""
    unread: list[InputError | RunError] = field(default_factory=list)
    """Why files could not be read."""

    def problems(self) -> Iterator[str]:
        """Check the whole set and yield a line for each problem; it begins with the path or address of the file."""
        path = f"{self.source.name}/{MANIFEST}"
        try:
            yield from (f"{path}: {problem}" for problem in manifest_problems(self.manifest))
            listed = listed_splits(self.manifest)
            listed_indices = {split: entry for split in SPLITS if (entry := self.manifest.index(split))}
            left_out = {(tree["cohort"], tree["subject"]) for tree in self.manifest.skipped}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield f"{path}: this is not a valid manifest ({type(error).__name__}: {error})"
            return
        places = [
            (split, number, entry) for split in SPLITS for number, entry in enumerate(self.manifest.shards(split))
        ]
        entries = [entry for _, _, entry in places]
        if self.source.is_unfinished:
            yield f"{self.source.name}/{JOURNAL}: an extension of this set is not finished"
        yield from self._extra_files(entries)
        for split, entry in listed_indices.items():
            yield from self._index_problems(split, entry)
        with self._read_ahead(places) as shards:
            for (split, number, entry), shard in track(zip(places, shards, strict=True), "shards", len(places)):
                yield from self._shard_problems(split, entry, shard)
                # The index is compared with tars that are as the manifest says.
                if split in self.indices and shard.tar and shard.tar.sha256 in (None, entry.sha256):
                    index = f"{self.source.name}/{listed_indices[split].name}"
                    problems = stretch_problems(self.indices[split], number, shard.tar.samples)
                    yield from (f"{index}: {problem}" for problem in problems)
        if not self.unread:
            yield from (f"{path}: {problem}" for problem in split_problems(listed, self.subject_splits))
        for cohort, subject in sorted(left_out & self.subject_splits.keys()):
            yield f"{path}: {cohort} {subject} is listed as left out, but has samples"

    def _extra_files(self, entries: list[ShardEntry]) -> Iterator[str]:
        """Yield a line for each tar and index that is not listed, leftovers of a killed build included."""
        listed = {f"{entry.name}{suffix}" for entry in entries for suffix in SUFFIXES}
        listed |= {index.name for split in SPLITS if (index := self.manifest.index(split))}
        sizes = self.source.sizes()
        self.knows_sizes = sizes is not None
        for name in sorted((sizes or {}).keys() - listed):
            yield f"{self.source.name}/{name}: the manifest does not list this file, so move it out of the set"

    def _index_problems(self, split: str, entry: IndexEntry) -> Iterator[str]:
        """Read the index of a split, and yield a line if it is not the one that the manifest lists."""
        try:
            data = self.source.read(entry.name)
            self.indices[split] = parse_listed_index(data, entry, self.manifest.shards(split), split)
        except ShardSetError as error:
            yield f"{self.source.name}/{entry.name}: {split_remedy(error)[0]}"
        except (FetchError, InputError) as error:
            self.unread.append(error)
            yield split_remedy(error)[0]

    @contextmanager
    def _read_ahead(self, places: list[tuple[str, int, ShardEntry]]) -> Iterator[Iterator[ReadShard]]:
        """Yield an iterator over the shards in order, of which several are read at a time."""
        at_once = self.source.shards_at_once
        pool = ThreadPoolExecutor(at_once, "verify")
        try:
            yield results_in_order((pool.submit(self._read, *place) for place in places), at_once)
        except BaseException:
            self.source.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, split: str, number: int, entry: ShardEntry) -> ReadShard:
        """Read a shard and its index. Called by several threads at once."""
        shapes = {member: self.manifest.sample_shape(member) for member in ("low", "high")}
        layout = SampleLayout(shapes, self.manifest.labelled_cohorts)
        index, name = None, f"{entry.name}.idx"
        try:
            index, name = self.source.read(name), f"{entry.name}.tar"
            if self.quick:
                described = self.indices[split].shard(number) if split in self.indices else None
                return ReadShard(self.source.look_at(entry, layout, index, described), index)
            return ReadShard(self.source.scan(entry, layout), index)
        except (FetchError, InputError) as error:
            return ReadShard(None, index, error)
        except OSError as error:
            problem = f"{self.source.name}/{name}: this file cannot be read ({error}). Check the disk."
            return ReadShard(None, index, RunError(problem))

    def _shard_problems(self, split: str, entry: ShardEntry, shard: ReadShard) -> Iterator[str]:
        tar, index = (f"{self.source.name}/{entry.name}{suffix}" for suffix in SUFFIXES)
        if shard.failure:
            self.unread.append(shard.failure)
            yield split_remedy(shard.failure)[0]
            return
        for path, content in ((tar, shard.tar), (index, shard.index)):
            if content is None:
                yield f"{path}: the manifest lists this file, but it is missing"
        if shard.tar is None:
            return
        yield from (f"{tar}: {problem}" for problem in tar_problems(entry, shard.tar))
        if shard.tar.problem:
            return
        if shard.index is not None:
            yield from (f"{index}: {problem}" for problem in index_problems(shard.index, shard.tar.samples))
        for sample in shard.tar.samples:
            yield from (f"{tar}: {sample.name}: {problem}" for problem in self._sample_problems(split, tar, sample))

    def _sample_problems(self, split: str, tar: str, sample: ScannedSample) -> Iterator[str]:
        if sample.key is not None:
            if sample.key in self.key_shards:
                yield f"this key is also in {self.key_shards[sample.key]}"
            self.key_shards[sample.key] = tar
        yield from sample.problems
        if sample.subject is not None:
            self.subject_splits[sample.subject].add(split)


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
    labels = {"shape": [1, height, width], "dtype": "int16"} if manifest.labelled_cohorts else None
    pairs.append(("sample.labels", tree["sample"].get("labels"), labels))
    for split, listed in entries.items():
        names = [entry.name for entry in listed]
        # Shard numbers have a gap where all subjects of a block were left out.
        pairs.append((f"splits.{split}.shards", names, sorted(n for n in set(names) if SHARD_NAME[split].fullmatch(n))))
        pairs.append((f"splits.{split}.samples", tree["splits"][split]["samples"], sum(e.samples for e in listed)))
    for name, stated, computed in pairs:
        if stated != computed:
            yield f"{name}: expected {computed}, computed from the rest of the manifest, found {stated}"


def tar_problems(entry: ShardEntry, tar: ScannedShard) -> Iterator[str]:
    """Yield a line for each difference between a tar as a whole and its entry in the manifest."""
    if tar.bytes != entry.bytes:
        yield f"expected {entry.bytes} bytes, found {tar.bytes}"
    elif tar.sha256 not in (None, entry.sha256):
        yield f"expected sha256 {entry.sha256}, found {tar.sha256}"
    if tar.problem:
        yield tar.problem
    elif len(tar.samples) != entry.samples:
        yield f"expected {entry.samples} samples, found {len(tar.samples)}"


def index_problems(index: bytes, samples: list[ScannedSample]) -> Iterator[str]:
    """Yield the first difference between an index and the members of its tar: a line, or the number of lines."""
    expected = [f"{INDEX_VERSION} {len(samples)}"]
    for sample in samples:
        expected.append(" ".join(f"{name.partition('.')[2]} {at} {size} {name}" for name, at, size in sample.members))
    found = index.decode("utf-8", errors="replace").splitlines()
    for number, (right, line) in enumerate(zip(expected, found, strict=False), start=1):
        if line != right:
            yield f"line {number}: expected {right!r}, as in the tar, found {line[:LONGEST_LINE]!r}"
            return
    if len(found) != len(expected):
        yield f"expected {len(expected)} lines, found {len(found)}"


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
