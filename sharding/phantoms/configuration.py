"""The ranges of heads that are rendered from label maps: the key `synthetic.heads` of `cohorts.yaml`."""

from dataclasses import dataclass

from upfield.common.ranges import Range, check_range, check_share

# Contrast of the heads at both fields.
RENDERED_CONTRAST = "T1w"
RATES = ("mirrored_rate", "stripped_rate", "defaced_rate", "cut_rate")
# The smallest and the largest value that each range may hold.
LIMITS: dict[str, Range] = {
    "scale": (0.5, 2.0),
    "rotation_deg": (0.0, 180.0),
    "coarse_rms_mm": (0.0, 50.0),
    "fine_rms_mm": (0.0, 20.0),
    "fat_mm": (0.0, 50.0),
    "label_spread": (0.0, 1.0),
    "texture": (0.0, 10.0),
    "vessels": (0.0, 10000.0),
    "log_bias_rms": (0.0, 1.0),
    "snr": (1.0, 1000.0),
    "blur_vox": (0.0, 10.0),
}


@dataclass(frozen=True)
class HeadsConfig:
    """Ranges `[least, most]` of the heads that are rendered from label maps, drawn once per subject and variant. A rate
    is the share of heads for which something happens."""

    scale: Range = (0.9, 1.1)
    """Size relative to the label map, drawn along each axis."""
    rotation_deg: Range = (0.0, 12.0)
    """Largest rotation about each axis; the rotation is drawn between its negative and itself."""
    coarse_rms_mm: Range = (1.0, 4.5)
    """Displacement of lobes along each axis, before the deformation is reduced until it has no folds."""
    fine_rms_mm: Range = (0.4, 1.4)
    """Displacement of gyri along each axis, before the same reduction."""
    mirrored_rate: float = 0.5
    """Share of heads that are mirrored. Left and right labels are exchanged with them."""
    fat_mm: Range = (3.0, 9.0)
    """Depth below the surface at which fat gives way to muscle."""
    label_spread: Range = (0.01, 0.04)
    """Standard deviation of the brightness of labels of the same tissue, relative to the tissue's."""
    texture: Range = (0.4, 1.4)
    """Strength of the texture within tissues; 0 renders each tissue flat."""
    vessels: Range = (20, 120)
    """Number of thin vessels."""
    stripped_rate: float = 0.1
    """Share of heads of which only the brain is left, as after skull stripping."""
    defaced_rate: float = 0.15
    """Share of heads whose face is removed, as in anonymised data."""
    cut_rate: float = 0.4
    """Share of heads that the field of view cuts off at one or two of its sides."""
    log_bias_rms: Range = (0.03, 0.25)
    """Root mean square of the logarithm of the smooth coil sensitivity that multiplies the high field."""
    snr: Range = (18.0, 90.0)
    """Signal of white matter at high field, divided by the standard deviation of the noise in each receiver channel."""
    blur_vox: Range = (0.3, 0.75)
    """Standard deviation of the blur of the high field, in voxels of its grid."""

    def __post_init__(self) -> None:
        """Check that ranges are ordered and within bounds, and that rates are shares."""
        for name, (least, most) in LIMITS.items():
            check_range(f"synthetic.heads.{name}", getattr(self, name), least, most)
        for name in RATES:
            check_share(f"synthetic.heads.{name}", getattr(self, name))
