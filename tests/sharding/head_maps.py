"""A small label map of a head: nested ellipsoids with left and right."""

import numpy as np

from upfield.imaging.volume import Volume
from upfield.sharding.configuration import GeometryConfig

SPACING_MM = 4.0
SHAPE = (48, 60, 56)
GEOMETRY = GeometryConfig((36, 37, 11), (5.0, 6.0, 18.0), (45, 56, 50), (4.0, 4.0, 4.0))
# Label on the left, on the right, and the half axes of the ellipsoid that it fills up to the next one, in mm.
SHELLS = (
    (511, 511, (76, 96, 92)),
    (507, 507, (72, 92, 88)),
    (515, 515, (66, 86, 82)),
    (24, 24, (60, 80, 76)),
    (3, 42, (57, 77, 73)),
    (2, 41, (46, 66, 62)),
    (4, 43, (14, 30, 14)),
)


def label_volume():
    """Return the map as a volume in RAS+; the left half lies below the middle of axis 0."""
    places = np.ix_(*(np.arange(size) - (size - 1) / 2 for size in SHAPE))
    voxels = np.zeros(SHAPE, np.float32)
    for left, right, half_mm in SHELLS:
        inside = sum((place * SPACING_MM / half) ** 2 for place, half in zip(places, half_mm, strict=True)) < 1
        voxels[inside] = np.broadcast_to(np.where(places[0] < 0, left, right), SHAPE)[inside]
    eye = sum((place * SPACING_MM - centre) ** 2 for place, centre in zip(places, (-30, 84, -20), strict=True)) < 12**2
    voxels[eye] = 506
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    return Volume(voxels, affine)
