"""The schema of `cohorts.yaml` and of the commands that build and inspect shard sets.

This file has no heavy imports, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from upfield.common.addresses import format_address, is_remote
from upfield.common.ranges import Range, check_range, check_share
from upfield.imaging.contrast import parse_contrast
from upfield.sharding.phantoms.configuration import RENDERED_CONTRAST, HeadsConfig
from upfield.sharding.physics.configuration import PhysicsConfig
from upfield.sharding.shardset.configuration import AccessConfig

Triple = tuple[int, int, int]
SpacingMm = tuple[float, float, float]
# The laws by which a low field is made from a high field, and what `recipe` accepts: a law, or both.
Law = Literal["report", "physics"]
LAWS: tuple[Law, ...] = get_args(Law)
Recipe = Literal["report", "physics", "both"]


@dataclass(frozen=True)
class GeometryConfig:
    """The two grids, in RAS+ order: axis 0 is left-right, so slices along it are sagittal.

    Examples:
        >>> import upfield
        >>> grids = upfield.GeometryConfig(high_shape=(180, 220, 200))
        >>> grids.high_size_mm
        (180.0, 220.0, 200.0)
    """

    low_shape: Triple = (112, 138, 40)
    """Voxels of the low-field grid."""
    low_spacing_mm: SpacingMm = (1.6, 1.6, 5.0)
    """Voxel size of the low-field grid, in mm."""
    high_shape: Triple = (179, 221, 200)
    """Voxels of the high-field grid. A sample is one slice of it, of shape (high_shape[1], high_shape[2])."""
    high_spacing_mm: SpacingMm = (1.0, 1.0, 1.0)
    """Voxel size of the high-field grid, in mm."""
    average: bool = False
    """Average over each voxel of a grid that is coarser than the scan, as a thick slice does, instead of sampling."""

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "GeometryConfig":
        """Read a geometry from plain values, with lists in place of tuples, as in a manifest or a model file."""
        values: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in tree.items()}
        return cls(**values)

    @property
    def high_size_mm(self) -> SpacingMm:
        """Side lengths of the box that the high-field grid covers, in mm."""
        first, second, third = (count * mm for count, mm in zip(self.high_shape, self.high_spacing_mm, strict=True))
        return first, second, third

    def __post_init__(self) -> None:
        """Refuse grids that no volume can have."""
        if min(*self.low_shape, *self.high_shape) < 2:
            raise ValueError(
                f"geometry: expected at least 2 voxels per axis, found low_shape {self.low_shape}, "
                f"high_shape {self.high_shape}."
            )
        if min(*self.low_spacing_mm, *self.high_spacing_mm) <= 0:
            raise ValueError(
                f"geometry: expected positive spacings in mm, found low_spacing_mm {self.low_spacing_mm}, "
                f"high_spacing_mm {self.high_spacing_mm}."
            )


@dataclass(frozen=True)
class SyntheticConfig:
    """Ranges of the synthetic low field's parameters, drawn uniformly once per subject and variant."""

    recipe: Recipe | None = None
    """How the low field is made. `report` is clip(N(G_sigma(I)^gamma), 0, 1), that is blur, darkening and noise.
    `physics` simulates a 64 mT scanner. `both` uses `physics` for variants 0, 2, 4, ... and `report` for the others. By
    default, scans use `report` and label maps use `physics`."""
    sigma_vox: Range = (0.4, 1.0)
    """Standard deviation of the Gaussian blur, in voxels of the low-field grid."""
    gamma: Range = (1.1, 1.8)
    """Darkening exponent; above 1 darkens."""
    noise_std: Range = (0.01, 0.05)
    """Standard deviation of the noise in a black voxel, as a fraction of the intensity range."""
    noise_bright_ratio: float = 0.3
    """Noise in a white voxel relative to a black one; below 1, the background gets more noise."""
    physics: PhysicsConfig = field(default_factory=PhysicsConfig)
    """Ranges of the 64 mT scanner that the recipe `physics` simulates."""
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    """Ranges of the heads that are rendered from label maps."""

    def recipe_for(self, *, maps: bool) -> Recipe:
        """Return the recipe of cohorts of scans, or of label maps."""
        return self.recipe or ("physics" if maps else "report")

    def laws(self, *, maps: bool) -> tuple[Law, ...]:
        """Return the laws of cohorts of scans, or of label maps, in the order in which the variants alternate."""
        recipe = self.recipe_for(maps=maps)
        return ("physics", "report") if recipe == "both" else (recipe,)

    def law(self, variant: int, *, maps: bool) -> Law:
        """Return the law of one synthetic variant of a scan, or of a label map."""
        laws = self.laws(maps=maps)
        return laws[variant % len(laws)]

    def __post_init__(self) -> None:
        """Check that ranges are ordered and within bounds."""
        for name, least in (("sigma_vox", 0.0), ("gamma", 1.0), ("noise_std", 0.0)):
            check_range(f"synthetic.{name}", getattr(self, name), least)
        check_share("synthetic.noise_bright_ratio", self.noise_bright_ratio)


@dataclass(frozen=True)
class CohortConfig:
    """One cohort. Path patterns hold `{subject}`, `{slice}` for slice stacks, and free `{fields}` kept as metadata.

    Examples:
        >>> import upfield
        >>> cohort = upfield.CohortConfig(
        ...     name="nyu",
        ...     low="low/{subject}_slice_{slice}.nii.gz",
        ...     high="high/{subject}_slice_{slice}.nii.gz",
        ...     contrast="T1",
        ... )
        >>> cohort.contrast
        'T1w'
    """

    name: str
    """Name of the cohort, part of every sample's key."""
    high: str | None = field(default=None, metadata={"kind": "pattern"})
    """Pattern of the high-field files. A {field} that both patterns name must have the same value in both files."""
    low: str | None = field(default=None, metadata={"kind": "pattern"})
    """Pattern of the low-field files; without it, all pairs are synthetic. Fields that may differ need two names."""
    labels: str | None = field(default=None, metadata={"kind": "pattern"})
    """Pattern of label maps of whole heads, in place of `high` and `low`: both fields are rendered from them."""
    labels_as: dict[int, int | str] = field(default_factory=dict)
    """Meaning of numbers in the label maps that are not known: a known number, or the name of a tissue."""
    synthetic: int = 1
    """Synthetic low-field variants per high-field volume of training subjects; without `low`, of all subjects. From a
    label map, each variant is another head."""
    split: dict[str, str | int | float | list[str | int | float]] = field(default_factory=dict)
    """Held-out subjects for `val` and `test`: a count, a fraction below 1, or a list of ids."""
    fit: Literal["resize", "crop_pad"] | None = None
    """`resize` stretches the image to the grid (default for slice stacks), and `crop_pad` keeps proportions (default
    for volumes)."""
    align: Literal["none", "rigid"] = "none"
    """Registration of the high field to the low field: `none` keeps pairs as they are, and `rigid` rotates and shifts
    the high field."""
    orientation: str | None = None
    """Directions of the axes, for example `RAS`, for files whose header does not state them; ignored for others."""
    contrast: str | None = None
    """Contrast of both fields, as a BIDS suffix such as T1w, T2w or FLAIR. By default, the files' names state it, and
    heads that are rendered from label maps are T1w."""

    def __post_init__(self) -> None:
        """Check names, patterns, splits and orientation."""
        if not 1 <= len(self.name) <= 30 or not all(c.isascii() and (c.isalnum() or c == "_") for c in self.name):
            raise ValueError(f"cohorts: name: expected 1 to 30 letters, digits and underscores, found {self.name!r}.")
        self._check_patterns()
        if self.synthetic < 0 or (self.low is None and self.synthetic == 0):
            raise ValueError(
                f"cohort {self.name}: synthetic: expected at least {0 if self.low else 1}, found {self.synthetic}. "
                "A cohort without `low` has only synthetic pairs."
            )
        for name, wanted in self.split.items():
            if isinstance(wanted, str):
                raise ValueError(
                    f"cohort {self.name}: split.{name}: expected a number or a list of ids, found {wanted!r}."
                )
            if isinstance(wanted, list) and any(not isinstance(item, str) for item in wanted):
                raise ValueError(
                    f"cohort {self.name}: split.{name}: expected ids in quotes, found numbers in {wanted}. Write "
                    "'007' instead of 007, which YAML reads as 7."
                )
        if self.orientation is not None and sorted("RLAPSI".find(c) // 2 for c in self.orientation) != [0, 1, 2]:
            raise ValueError(
                f"cohort {self.name}: orientation: expected three letters, one each of R or L, A or P, S or I, "
                f"found {self.orientation!r}."
            )
        if unknown := sorted(set(self.split) - {"val", "test"}):
            raise ValueError(
                f"cohort {self.name}: split: expected only val and test, found {unknown}. The rest is for training."
            )
        self._set_contrast()

    def _check_patterns(self) -> None:
        """Check the patterns, and that they and the keys that depend on them can be combined."""
        for role in ("high", "low", "labels"):
            pattern = getattr(self, role)
            if pattern is not None and "{subject}" not in pattern:
                raise ValueError(
                    f"cohort {self.name}: {role}: expected a pattern with {{subject}}, found {pattern!r}. "
                    "Write {subject} in place of the subject's id."
                )
        if self.labels is None:
            if self.high is None:
                missing = "high, because pairs need a high field" if self.low else "high or labels"
                raise ValueError(f"cohort {self.name}: expected the pattern {missing}, found none. Add it.")
            if self.labels_as:
                raise ValueError(
                    f"cohort {self.name}: labels_as: this cohort has no label maps. Leave out labels_as, or add labels."
                )
            return
        settings = {"high": self.high, "low": self.low, "fit": self.fit, "align": self.align != "none"}
        if wrong := [name for name, value in settings.items() if value]:
            raise ValueError(
                f"cohort {self.name}: {wrong[0]} and labels cannot be combined, because both fields are rendered from "
                f"the label maps. Leave out {wrong[0]}, or use two cohorts."
            )
        if "{slice}" in self.labels:
            raise ValueError(
                f"cohort {self.name}: labels: expected a pattern of whole volumes, found {{slice}} in {self.labels!r}. "
                "Save each label map as one file."
            )

    def _set_contrast(self) -> None:
        """Bring the contrast into its usual form: `T1` and `t1w` become `T1w`."""
        try:
            # The dataclass is frozen.
            object.__setattr__(self, "contrast", self.contrast and parse_contrast(self.contrast))
        except ValueError as error:
            raise ValueError(f"cohort {self.name}: contrast: {error}.") from error
        if self.labels and self.contrast not in (None, RENDERED_CONTRAST):
            raise ValueError(
                f"cohort {self.name}: contrast: heads that are rendered from label maps are {RENDERED_CONTRAST}, found "
                f"{self.contrast}. Leave out contrast."
            )


@dataclass(frozen=True)
class ShardConfig:
    """Build shards from cohorts, or extend a set with a new cohort.

    Examples:
        >>> import upfield
        >>> cohort = upfield.CohortConfig(name="ixi", high="IXI-T1/{subject}-{site}-{scan}-T1.nii.gz")
        >>> config = upfield.ShardConfig(out="ixi-shards", cohorts=[cohort], context=2)
        >>> config.geometry.high_shape, config.samples_per_shard
        ((179, 221, 200), 512)
    """

    out: str = field(metadata={"kind": "path or address"})
    """Folder of the shard set, or its address (s3://bucket/set). The set is created, finished or extended."""
    cohorts: list[CohortConfig] = field(default_factory=list)
    """The cohorts, in order."""
    root: Path | None = None
    """Folder that relative patterns start from; default: the folder of the file that holds `cohorts`."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """The two grids."""
    context: int = 0
    """Neighbouring slices on each side of the low-field slice: 0 is 2D, 2 makes 5 channels."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """Ranges of the synthetic low field."""
    keep_labels: bool = False
    """Store the labels of each slice that was rendered from a label map with its sample, as `KEY.labels.npy`."""
    seed: int = 0
    """Seed of the synthetic parameters and of the order of samples."""
    samples_per_shard: int = 512
    """Maximum number of samples in one shard; 512 at the default geometry are about 90 MB."""
    subjects_per_block: int = 4
    """Subjects whose samples are shuffled together. A worker holds one such block in memory (4: about 0.3 GB)."""
    jobs: int = 0
    """Number of processes; 0 is one per core. The bytes written do not depend on it."""
    executor: Literal["local", "ray"] = "local"
    """Where blocks are built: in processes on this machine, or in tasks on a Ray cluster that shares the folders."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do about subjects with faulty files: `fail` stops the build, `skip` leaves them out and names them."""
    max_skipped: int = 5
    """Maximum number of subjects that `on_error: skip` may leave out."""
    save_volumes: Path | None = None
    """Folder in which to save each subject's volumes on the two grids as NIfTI files; default: do not save them."""
    pseudonymize: bool = False
    """Replace subject ids by keyed hashes, and leave out free fields and patterns, so that the set may be published."""
    pseudonym_key: Path | None = None
    """File with the key of the pseudonyms; default: OUT.key beside the set, created if missing. Never publish it."""

    def __post_init__(self) -> None:
        """Check numbers, paths and cohort names."""
        for name, least in (
            ("max_skipped", 0),
            ("context", 0),
            ("seed", 0),
            ("samples_per_shard", 1),
            ("subjects_per_block", 1),
            ("jobs", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}.")
        for name in ("save_volumes", "pseudonym_key"):
            path = getattr(self, name)
            if path and is_remote(str(path)):
                raise ValueError(
                    f"{name}: expected a path on this machine, found the address {format_address(str(path))}."
                )
            if self.out and path and path.absolute().is_relative_to(Path(self.out).absolute()):
                raise ValueError(f"{name}: {path} lies inside the set. Choose a path outside {self.out}.")
        if self.pseudonym_key and not self.pseudonymize:
            raise ValueError(
                f"pseudonym_key: the key {self.pseudonym_key} has no effect without --pseudonymize. "
                "Add --pseudonymize, or leave out the key."
            )
        if any("physics" in self.synthetic.laws(maps=cohort.labels is not None) for cohort in self.cohorts):
            self.synthetic.physics.refuse_finer_than(self.geometry.high_spacing_mm)
        if self.keep_labels and self.cohorts and not any(cohort.labels for cohort in self.cohorts):
            raise ValueError(
                "keep_labels: none of the cohorts has label maps. Leave out keep_labels, or add a cohort with `labels`."
            )
        names = [cohort.name for cohort in self.cohorts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"cohorts: several cohorts are called {', '.join(twice)}. Choose different names.")


@dataclass(frozen=True)
class PhantomConfig:
    """Write a cohort of anatomically varied phantoms, made from the MNI152 template that nilearn ships, or from label
    maps."""

    out: Path
    """Folder of the cohort."""
    labels: str | None = field(default=None, metadata={"kind": "pattern"})
    """Pattern of label maps of whole heads, such as 'MAPS/*.nii.gz'. Subjects are rendered from them in turn, and their
    true labels are written too. Without it, the template is used."""
    labels_as: dict[int, int | str] = field(default_factory=dict)
    """Meaning of numbers in the label maps that are not known, such as '{900: fat}': a known number, or a tissue."""
    subjects: int = 6
    """Number of subjects: two thirds become pairs of slice stacks under `real`, the others volumes named like IXI's."""
    seed: int = 0
    """Seed of everything random; equal seeds make equal cohorts."""
    jobs: int = 0
    """Number of processes; 0 is one per core."""

    def __post_init__(self) -> None:
        """Check seed, jobs and the number of subjects; fewer than 4 cannot be split."""
        if self.seed < 0 or self.jobs < 0:
            raise ValueError(f"seed and jobs: expected at least 0, found {self.seed} and {self.jobs}.")
        if not 4 <= self.subjects <= 99:
            raise ValueError(f"subjects: expected 4 to 99, found {self.subjects}.")
        if self.labels_as and self.labels is None:
            raise ValueError("labels_as: there are no label maps. Add labels, or leave out labels_as.")


@dataclass(frozen=True)
class VerifyConfig(AccessConfig):
    """Check a shard set against its manifest and index. A remote set is checked while it is downloaded, and is not put
    into the cache."""

    shards: str | Path
    """Shard set: a folder or an address."""
    quick: bool = False
    """Skip the hashes and the voxel values. Of a remote set, only the manifest, the indices and, if the store can list
    them, the sizes of the files are read."""


@dataclass(frozen=True)
class PreviewConfig(AccessConfig):
    """Draw pairs as the reader returns them, per cohort and kind: a picture, or a page with sliders through volumes."""

    shards: str | Path
    """Shard set: a folder or an address. Of a remote set, the shards with the chosen pairs are downloaded."""
    out: Path
    """File to write: a `.png` of pairs of slices, or an `.html` with sliders through pairs of volumes."""
    split: Literal["train", "val", "test"] = "train"
    """Split to draw from."""
    pairs: int = 8
    """Number of pairs to draw, of slices or of volumes, spread over cohorts and kinds."""
    overlay: Literal["contour", "checkerboard", "none"] = "contour"
    """How the high field is drawn over the low field: `contour` as edges, `checkerboard` as every other tile."""
    seed: int = 0
    """Seed that chooses the pairs."""

    def __post_init__(self) -> None:
        """Check the seed and the number of pairs."""
        super().__post_init__()
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, found {self.seed}.")
        if self.pairs < 1:
            raise ValueError(f"pairs: expected at least 1, found {self.pairs}.")


@dataclass(frozen=True)
class AuditConfig(AccessConfig):
    """Compare real low-field scans with the synthetic low field of a set, measure by measure."""

    shards: str | Path
    """Shard set: a folder or an address. From a remote set, only the shards with the chosen volumes are downloaded."""
    scans: list[Path]
    """Real low-field scans, as NIfTI or MGH files."""
    out: Path
    """JSON file to write. A picture is written beside it, with the suffix `.png`."""
    split: Literal["train", "val", "test"] = "train"
    """Split from which synthetic volumes are taken."""
    volumes: int = 24
    """Maximum number of synthetic volumes to measure, spread over cohorts, subjects and variants. Each takes about two
    seconds."""

    def __post_init__(self) -> None:
        """Refuse an empty list of scans, and too few volumes."""
        super().__post_init__()
        if not self.scans:
            raise ValueError("scans: the list is empty. Name at least one scan.")
        if twice := [scan for scan in self.scans if self.scans.count(scan) > 1]:
            raise ValueError(f"scans: {twice[0]} is named twice. Name each scan once.")
        if self.volumes < 5:
            raise ValueError(f"volumes: expected at least 5, found {self.volumes}.")
