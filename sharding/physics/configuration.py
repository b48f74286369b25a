"""The ranges of the physics recipe, the key `synthetic.physics` of `cohorts.yaml`. No heavy imports."""

from collections.abc import Sequence
from dataclasses import dataclass

from upfield.common.ranges import Range, check_range, check_share

# The smallest and the largest value that each range may hold.
LIMITS: dict[str, Range] = {
    "in_plane_mm": (0.2, 10.0),
    "thickness_mm": (0.2, 20.0),
    "gap": (0.0, 1.0),
    "profile_edge": (0.0, 1.0),
    "zero_filling": (1.0, 4.0),
    "taper": (0.0, 1.0),
    "snr": (1.0, 1000.0),
    "log_bias_rms": (0.0, 1.0),
    "off_resonance_mm": (0.0, 10.0),
    "motion_mm": (0.0, 30.0),
    "zipper_strength": (0.0, 1000.0),
    **{f"{name}_tr_ms": (10.0, 30000.0) for name in ("t1w", "t2w", "flair")},
    **{f"{name}_te_ms": (0.0, 1000.0) for name in ("t1w", "t2w", "flair")},
    **{f"{name}_ti_ms": (10.0, 10000.0) for name in ("t1w", "flair")},
    "smoothing": (0.0, 0.6),
    "margin_mm": (0.0, 60.0),
}
RATES = ("motion_rate", "zipper_rate")


@dataclass(frozen=True)
class PhysicsConfig:
    """Ranges `[least, most]` of the simulated 64 mT scanner, drawn once per subject and variant."""

    slice_axis: tuple[float, float, float] = (0.1, 0.1, 0.8)
    """Probabilities that slices are sagittal, coronal and axial."""
    in_plane_mm: Range = (1.4, 1.8)
    """Voxel size within a slice."""
    thickness_mm: Range = (3.5, 7.0)
    """Thickness of a slice: full width of its profile at half maximum."""
    gap: Range = (0.0, 0.1)
    """Gap between slices, as a fraction of the thickness."""
    profile_edge: Range = (0.1, 0.5)
    """Width of the profile's edges, as a fraction of the thickness: 0 is a box."""
    zero_filling: Range = (1.0, 1.6)
    """In-plane voxels after zero filling for each measured one: the resolution is coarser by this factor."""
    taper: Range = (0.0, 0.8)
    """Fraction of the measured in-plane frequencies that a window damps. A value of 0 causes the strongest ringing."""
    snr: Range = (6.0, 100.0)
    """Signal of white matter, divided by the standard deviation of the noise in each channel; drawn logarithmically."""
    log_bias_rms: Range = (0.05, 0.4)
    """Root mean square of the logarithm of the coil's sensitivity."""
    off_resonance_mm: Range = (0.0, 0.8)
    """Root mean square displacement along the readout."""
    motion_rate: float = 0.15
    """Fraction of scans in which the head moves."""
    motion_mm: Range = (0.5, 3.0)
    """Largest displacement of a head that moves."""
    zipper_rate: float = 0.03
    """Fraction of scans with a zipper, that is, a line of interference."""
    zipper_strength: Range = (2.0, 8.0)
    """Amplitude of the zipper, in standard deviations of the noise."""
    t1w_tr_ms: Range = (850.0, 1150.0)
    """Repetition time of T1w."""
    t1w_te_ms: Range = (4.0, 7.0)
    """Effective echo time of T1w."""
    t1w_ti_ms: Range = (310.0, 430.0)
    """Inversion time of T1w."""
    t2w_tr_ms: Range = (2000.0, 5000.0)
    """Repetition time of T2w."""
    t2w_te_ms: Range = (150.0, 215.0)
    """Effective echo time of T2w."""
    flair_tr_ms: Range = (3600.0, 4200.0)
    """Repetition time of FLAIR."""
    flair_te_ms: Range = (150.0, 220.0)
    """Effective echo time of FLAIR."""
    flair_ti_ms: Range = (1300.0, 1500.0)
    """Inversion time of FLAIR."""
    smoothing: Range = (0.0, 0.2)
    """Share of each voxel that comes from its two neighbours along each axis, because scanners interpolate the
    magnitude when they correct distortion. It makes the distribution of noise in air narrower."""
    margin_mm: Range = (0.0, 30.0)
    """Largest width of the margin of zeros at the corners of the image, where the correction of distortion has no data.
    The margin narrows towards the middle of each face."""
    relaxation_spread: float = 1.0
    """Factor on the spread of relaxation times between people: 0 gives everybody the mean."""

    def __post_init__(self) -> None:
        """Refuse ranges that contradict themselves or each other."""
        for name, (least, most) in LIMITS.items():
            check_range(f"synthetic.physics.{name}", getattr(self, name), least, most)
        for name in RATES:
            check_share(f"synthetic.physics.{name}", getattr(self, name))
        if not 0 <= self.relaxation_spread <= 3:
            raise ValueError(f"synthetic.physics.relaxation_spread: expected 0..3, found {self.relaxation_spread}.")
        if min(self.slice_axis) < 0 or abs(sum(self.slice_axis) - 1) > 1e-6:
            raise ValueError(
                f"synthetic.physics.slice_axis: expected three probabilities that sum to 1, found "
                f"{list(self.slice_axis)}."
            )
        if self.thickness_mm[0] < self.in_plane_mm[1]:
            raise ValueError(
                f"synthetic.physics: the thinnest slice, {self.thickness_mm[0]} mm, is thinner than the largest voxel "
                f"within a slice, {self.in_plane_mm[1]} mm. Raise thickness_mm or lower in_plane_mm."
            )
        self._check_times()

    def _check_times(self) -> None:
        """Refuse sequences whose last echo comes after the next excitation."""
        for name in ("t1w", "t2w", "flair"):
            tr_ms, te_ms = getattr(self, f"{name}_tr_ms")[0], getattr(self, f"{name}_te_ms")[1]
            ti_ms = getattr(self, f"{name}_ti_ms")[1] if name != "t2w" else 0.0
            if ti_ms + te_ms >= tr_ms:
                raise ValueError(
                    f"synthetic.physics.{name}_tr_ms: the shortest repetition, {tr_ms} ms, ends before the last echo, "
                    f"at {ti_ms + te_ms} ms. Raise {name}_tr_ms or shorten the other times."
                )

    def refuse_finer_than(self, high_spacing_mm: Sequence[float]) -> None:
        """Refuse a low field that may be finer than the high field.

        Args:
            high_spacing_mm: `(3,)`, voxel size of the high-field grid.

        Raises:
            ValueError: the smallest voxel is smaller than the voxels of the high-field grid.
        """
        if self.in_plane_mm[0] < max(high_spacing_mm):
            raise ValueError(
                f"synthetic.physics.in_plane_mm: a low field of {self.in_plane_mm[0]} mm would be finer than the high "
                f"field, whose voxels measure {max(high_spacing_mm)} mm. Raise in_plane_mm."
            )
