"""Properties of cohorts with generated file names, fields, links and copies."""

import contextlib
import io
import json
import os
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upfield.common.errors import InputError
from upfield.sharding.cohorts.subjects import find_subjects
from upfield.sharding.configuration import CohortConfig
from upfield.sharding.shard import main
from upfield.sharding.shardset.manifest import read_manifest
from upfield.sharding.shardset.sample_key import SPLITS

pytestmark = pytest.mark.generated
# A build takes longer than the search for files.
BUILDS = settings(max_examples=settings().max_examples // 5)
GEOMETRY = """\
geometry: {low_shape: [3, 4, 3], low_spacing_mm: [2, 2, 2], high_shape: [5, 6, 4], high_spacing_mm: [1, 1, 1]}
cohorts:
"""
PATTERNS = (
    "{field}/{subject}.nii",
    "{field}/{subject}_{session}.nii",
    "{field}/sub-{subject}/sub-{subject}_ses-{session}_{contrast}.nii",
    "{field}/{subject}-{run}_{slice}.nii",
    "{field}/**/{subject}_{session}.nii",
    "{field}[1]/{subject}*_{session}.nii",
)
NAMES = ("subject", "session", "contrast", "run", "folder", "other")
WORDS = ["01", "1", "001", "a", "A", "sub-01", "01_ses-1", "x y", "é", "a.b", "T1w", "T2w", "[a]", "a{b}"]
LETTERS = st.characters(exclude_characters="/\0", codec=None, exclude_categories=())
TEXTS = st.sampled_from(WORDS) | st.text(LETTERS, min_size=1, max_size=8)
FILES = st.tuples(
    st.sampled_from(["low", "high"]),
    st.fixed_dictionaries(dict.fromkeys(NAMES, TEXTS)),
    st.integers(0, 3),
    st.sampled_from(["file", "file", "file", "link", "broken", "folder", "loop"]),
)
LOOPS = [("high", dict.fromkeys(NAMES, name), 0, "loop") for name in "abc"]


def path_of(pattern, field, values, number):
    name = pattern.replace("{field}", field).replace("{slice}", str(number))
    for key, value in values.items():
        name = name.replace(f"{{{key}}}", value)
    return name.replace("**", values["folder"]).replace("*", values["other"])


def plant(root, pattern, files):
    """Make empty files, links and folders; names that the file system refuses are left out."""
    for field, values, number, kind in files:
        try:
            path = root / path_of(pattern, field, values, number)
            if not path.resolve().is_relative_to(root) or ".." in path.parts:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "link":
                path.symlink_to(root / "elsewhere.nii")
            elif kind == "broken":
                path.symlink_to(root / "nowhere.nii")
            elif kind == "loop":
                path.with_suffix("").symlink_to(path.parent)
            elif kind == "folder":
                path.mkdir()
            else:
                path.touch()
        except (OSError, ValueError):
            continue


def discover(cohort, root, seed):
    """Find the subjects while the file system lists its entries in a random order."""
    scandir, order = os.scandir, random.Random(seed)

    def shuffled(path="."):
        with scandir(path) as entries:
            listed = list(entries)
        order.shuffle(listed)
        return contextlib.nullcontext(iter(listed))

    with patch("os.scandir", shuffled), contextlib.redirect_stderr(io.StringIO()):
        try:
            return find_subjects(cohort, root)
        except InputError as error:
            return str(error)


@given(st.sampled_from(PATTERNS), st.lists(FILES, max_size=12))
@example("{field}/**/{subject}_{session}.nii", LOOPS)
def test_pairs_agree_in_every_shared_field_in_whatever_order_files_are_listed(pattern, files):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        (root / "elsewhere.nii").touch()
        plant(root, pattern, files)
        low, high = (pattern.replace("{field}", field) for field in ("low", "high"))
        cohort = CohortConfig("a", high, low, split={"val": 0.3, "test": 0.3})
        found = discover(cohort, root, 0)
        assert found == discover(cohort, root, 1)
    if isinstance(found, str):
        return
    faulty = {problem.subject for problem in found.problems}
    for subject in found.subjects:
        if subject.name not in faulty:
            expect_one_scan(root, pattern, subject)


def expect_one_scan(root, pattern, subject):
    """Write the names of the files from the subject and its fields, and compare them with the files."""
    for value in subject.high.metadata.values():
        if not isinstance(value, str):
            assert value["low"].casefold().replace("0", "") == value["high"].casefold().replace("0", "")
    for field, source in subject.volumes:
        values = {name: v if isinstance(v, str) else v[field] for name, v in subject.high.metadata.items()}
        values |= {"subject": subject.name, "folder": "", "other": ""}
        for path in source.paths:
            possible = {path_of(pattern, field, values, number) for number in range(4)}
            assert "*" in pattern or str(path.relative_to(root)) in possible


PEOPLE = st.tuples(
    st.sampled_from("ab"),
    st.integers(1, 4),
    st.sampled_from(["{:02d}", "{}", "sub-{:02d}", "{:02d}_ses-1", "{:02d}_ses-2", "sub-{:03d}_T1w", "SUB{:02d}"]),
    st.sampled_from(["scan", "scan", "scan", "copy", "text", "link"]),
)


@BUILDS
@given(
    st.lists(PEOPLE, min_size=2, max_size=10, unique_by=lambda scan: (scan[0], scan[2].format(scan[1]))),
    st.sampled_from(["{val: 0.4, test: 0.3}", "{val: 1}", "{}"]),
    st.sampled_from(["together", "the new cohort alone", "both cohorts again"]),
)
def test_builds_end_well_and_name_everybody_who_is_in_two_splits(people, split, way):
    with tempfile.TemporaryDirectory() as folder:
        root, persons = Path(folder), {}
        for number, (cohort, person, spelling, kind) in enumerate(people):
            name = spelling.format(person)
            persons[cohort, name] = person
            write(root / f"{cohort}/{name}.nii", kind, number)
        before = state(root)
        names = sorted({cohort for cohort, _ in persons})
        cohorts = [f"  - {{name: {name}, high: '{name}/{{subject}}.nii', split: {split}}}\n" for name in names]
        ends = [] if way == "together" else [build(root, cohorts[:1])]
        ends.append(build(root, cohorts[-1:] if way == "the new cohort alone" else cohorts))
        assert all(code in (0, 2) and "Traceback" not in said for code, said in ends), ends
        after = {path: content for path, content in state(root).items() if root / "set" not in path.parents}
        assert before.items() <= after.items()
        assert after.keys() - before.keys() <= {root / "cohorts.yaml", root / "set.problems.json"}
        if ends[-1][0] == 0:
            expect_everybody_named(root, persons)


def expect_everybody_named(root, persons):
    manifest, splits = read_manifest(root / "set"), defaultdict(set)
    for split in SPLITS:
        for tree in manifest.subjects(split):
            splits[persons[tree["cohort"], tree["subject"]]].add(split)
    report = root / "set.problems.json"
    groups = json.loads(report.read_text()).get("namesakes", []) if report.exists() else []
    named = {persons[member["cohort"], member["name"]] for group in groups for member in group}
    assert {person for person, its in splits.items() if len(its) > 1} == named


def write(path, kind, seed):
    path.parent.mkdir(exist_ok=True)
    if kind == "text":
        path.write_text("no scan")
    elif kind == "link" and (first := next(path.parent.parent.glob("*/*.nii"), None)):
        path.symlink_to(first)
    else:
        voxels = np.random.default_rng(0 if kind == "copy" else seed + 1).integers(0, 900, (5, 6, 4), np.int16)
        nib.Nifti1Image(voxels, np.eye(4)).to_filename(path)


def state(root):
    files = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    return {path: os.readlink(path) if path.is_symlink() else path.read_bytes() for path in files}


def build(root, cohorts):
    (root / "cohorts.yaml").write_text(GEOMETRY + "".join(cohorts))
    arguments = ["--config", str(root / "cohorts.yaml"), "--out", str(root / "set"), "--jobs", "1"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main([*arguments, "--on_error", "skip", "--max_skipped", "9"])
    return code, errors.getvalue()
