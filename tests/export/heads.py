"""Scans with a landmark, and a model that changes nothing, for the tests of enhancement."""

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage
from scipy.spatial.transform import Rotation

from upfield.common.command import to_tree
from upfield.export.modelfile.card import ModelCard
from upfield.imaging.normalisation import NORMALISATION
from upfield.sharding.configuration import GeometryConfig

SHAPE, SPACING_MM = (24, 28, 10), (1.6, 1.6, 5.0)
OBLIQUE = Rotation.from_euler("xyz", (0.2, 0.15, -0.1)).as_matrix()
# Not on an axis of symmetry, nor on the centre of a voxel.
LANDMARK_MM = np.array([-6.3, 31.2, 14.9])
WIDTH_MM = 5.0
AXCODES = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for flips in product((0, 1), repeat=3)
]


HEAD_SHAPE = (40, 44, 48)
# The box of the high-field grid is as large as a scan of SHAPE, to the nearest mm.
GEOMETRY = GeometryConfig(SHAPE, SPACING_MM, (38, 45, 50), (1.0, 1.0, 1.0))


def model_card(geometry: GeometryConfig = GEOMETRY, normalisation: str = NORMALISATION) -> ModelCard:
    """Return the metadata of a model, as far as the preparation of scans needs it."""
    return ModelCard({"context": 0, "normalisation": normalisation, "geometry": to_tree(geometry)})


class Unchanged:
    """A restorer that returns the centre slice."""

    normalisation, card = NORMALISATION, model_card()

    def __init__(self, context: int = 0) -> None:
        self.context = context

    def restore(self, low: np.ndarray) -> np.ndarray:
        assert low.shape[1] == 1 + 2 * self.context
        return low[:, self.context : self.context + 1]


def radius(shape: tuple[int, ...] = HEAD_SHAPE) -> np.ndarray:
    places = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return np.sqrt(sum(np.square(place) for place in places))


def whole_head(noise: float = 10.0) -> np.ndarray:
    """Draw skin (1000), skull (60) and brain (300 to 700), with the noise of magnitude images in the air around."""
    rng = np.random.default_rng(0)
    r = radius()
    brain = 500 + 200 * np.tanh(60 * ndimage.gaussian_filter(rng.standard_normal(HEAD_SHAPE), 4))
    tissue = np.where(r < 0.7, brain, np.where(r < 0.78, 60, 1000)) * (r < 0.85)
    return np.abs(tissue + rng.normal(0, noise, HEAD_SHAPE)).astype(np.float32)


def scan_affine(rotation: np.ndarray | None = None, axcodes: str = "RAS") -> tuple[np.ndarray, np.ndarray]:
    """Return the affine of a scan of SHAPE centred at (0, 20, 10) and stored as `axcodes`, and the orientation."""
    affine = np.diag((*SPACING_MM, 1.0))
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ affine[:3, :3]
    affine[:3, 3] = (0, 20, 10) - affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    return affine @ inv_ornt_aff(turn, SHAPE), turn


def stored_shape(turn: np.ndarray) -> tuple[int, ...]:
    return apply_orientation(np.empty(SHAPE, np.uint8), turn).shape


def draw(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Draw a bright blob at LANDMARK_MM over faint noise: `shape`, float32."""
    index = np.stack([*np.indices(shape), np.ones(shape)])
    away_mm = np.tensordot(affine, index, 1)[:3] - LANDMARK_MM[:, None, None, None]
    blob = np.exp(-np.square(away_mm).sum(axis=0) / (2 * WIDTH_MM**2))
    return (1000 * blob + np.random.default_rng(0).random(shape)).astype(np.float32)


def write_scan(path: Path, axcodes: str = "RAS", rotation: np.ndarray | None = None) -> Path:
    """Write a scan with the landmark, stored as `axcodes`."""
    affine, turn = scan_affine(rotation, axcodes)
    nib.Nifti1Image(draw(stored_shape(turn), affine), affine).to_filename(path)
    return path


def load(path: Path) -> Any:
    """Open a file with nibabel; typed as Any, because the stubs know only a general image."""
    return nib.load(path)


def landmark_mm(path: Path) -> np.ndarray:
    """Return where the landmark of a file lies in the world, in mm, read with nibabel alone."""
    image = load(path)
    voxels = np.asarray(image.dataobj)
    weights = np.where(voxels > 0.5 * voxels.max(), voxels, 0)
    index = [np.average(axis, weights=weights) for axis in np.indices(voxels.shape)]
    return (image.affine @ (*index, 1))[:3]


def off_mm(path: Path) -> float:
    """Return the distance in mm of a file's landmark from its true place."""
    return float(np.linalg.norm(landmark_mm(path) - LANDMARK_MM))
