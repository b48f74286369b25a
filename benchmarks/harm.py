"""Measure whether a model helps or harms on scans that it was not trained for, beside interpolation and the truth.

`--high` names high-field scans that the model was not trained on. Low fields are made from them by each of `--recipes`.
`--low` names low-field scans of any contrast. Four tables are printed:

    lesions         Spheres of known size are made darker or brighter in the high field, before the low field is made.
                    The change of intensity inside of them, relative to the same head without lesions and with the same
                    noise, and the share of the true change that is kept. Contrast to noise is the difference between
                    the sphere and a shell around it, divided by the standard deviation in the shell.
    enhanced twice  PSNR and detail after one and after two passes; detail is the mean gradient within the head,
                    relative to the truth.
    high field      PSNR and detail of the output against the scan, if a high-field scan is given to the model.
    low field       inconsistency and disagreement, as `upfield evaluate` defines them, and whether the output keeps the
                    order of the tissues: the mean output in four classes of the scan, from dark to bright, and the
                    rank correlation of output and scan at the resolution of the scan.

Figures are over the head in the `--slices` sagittal slices around the middle. Without scans, nothing is measured.
"""

import argparse
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from skimage.filters import threshold_multiotsu

from upfield.evaluation.consistency import LowFieldSampling, check_consistency
from upfield.evaluation.disagreement import disagreement
from upfield.export.configuration import STARTER
from upfield.export.modelfile.engines import open_model_file
from upfield.export.modelfile.file_restorer import FileRestorer
from upfield.export.pretrained.packaged_model import find_model
from upfield.export.scans.restoration import restore_volume
from upfield.export.scans.scan import prepare
from upfield.imaging.air import estimate_air, raise_to_air
from upfield.imaging.head_mask import head_mask
from upfield.imaging.normalisation import PERCENTILES, normalise_in_place, percentiles
from upfield.imaging.slices import neighbour_indices
from upfield.imaging.volume import Volume, read_volume
from upfield.sharding.building.field_resampler import FieldResampler
from upfield.sharding.building.pairs.low_field import synthetic_low
from upfield.sharding.configuration import GeometryConfig, Recipe, ShardConfig, SyntheticConfig
from upfield.sharding.physics.acquisition import acquired_shape
from upfield.sharding.shardset.sample_key import Unit

DIAMETERS_MM, CHANGES = (4.0, 8.0, 16.0), (-0.5, -0.2, 0.3)
# Lesions are at least this deep in the head, and at least this far apart.
DEPTH_MM, DISTANCE_MM = 25.0, 24.0
Image = NDArray[np.float32]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Lesion:
    """A sphere in which the intensity of the high field is changed."""

    centre: NDArray[np.int64]
    """Voxel `(3,)`."""
    diameter_mm: float
    """Diameter of the sphere."""
    change: float
    """Relative change of the intensity."""

    def weight(self, shape: tuple[int, ...]) -> Image:
        """Return the share of each voxel `(X, Y, Z)` of 1 mm that the sphere fills."""
        grid = np.ogrid[tuple(map(slice, shape))]
        distance = np.sqrt(sum(np.square(axis - at) for axis, at in zip(grid, self.centre, strict=True)))
        return np.clip(0.5 + self.diameter_mm / 2 - distance, 0, 1).astype(np.float32)

    def shell(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the voxels `(X, Y, Z)` from 2 to 6 mm outside of the sphere."""
        inner, outer = (replace(self, diameter_mm=self.diameter_mm + 2 * mm).weight(shape) for mm in (2, 6))
        return (outer > 0.5) & (inner == 0)


class Trial:
    """A model, and what is measured with it."""

    def __init__(self, model: FileRestorer, slices: int, seed: int) -> None:
        """Store the arguments."""
        self.model, self.slices, self.seed = model, slices, seed

    def middle(self, image: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the sagittal slices `(N, Y, Z)` around the middle of `(X, Y, Z)`."""
        start = max(0, (len(image) - self.slices) // 2)
        return image[start : start + self.slices]

    def restore(self, image: Image) -> Image:
        """Restore the middle slices of `(X, Y, Z)` in [0, 1]: `(N, Y, Z)`."""
        return restore_volume(self._slices(image), self.model, 4)

    def disagreement(self, image: Image, restored: Image) -> Image:
        """Compute the disagreement `(N, Y, Z)` on the middle slices of `(X, Y, Z)`."""
        low = self._slices(image)
        return disagreement(low, restored, lambda moved: restore_volume(moved, self.model, 4), self.seed)

    def _slices(self, image: Image) -> Image:
        indices = self.middle(neighbour_indices(np.arange(len(image)), len(image), self.model.context))
        return image[indices]


def read_high(path: Path, geometry: GeometryConfig) -> tuple[Volume, FieldResampler]:
    """Read a high-field scan on the high-field grid, `(X, Y, Z)` in [0, 1], as a shard set holds it."""
    volume = read_volume(path)
    air = estimate_air(volume.voxels)
    volume = raise_to_air(volume, air)
    resampler = FieldResampler.around(geometry, "crop_pad", volume, air)
    high = resampler.high_from_file(volume, air)
    normalise_in_place(high.voxels, str(path))
    return high, resampler


def make_lows(heads: list[Volume], resampler: FieldResampler, recipe: Recipe, seed: int) -> list[Image]:
    """Make the low field of each volume with the same parameters and noise: `(X, Y, Z)` on the high-field grid.

    The first one is scaled to [0, 1], and the others with it.
    """
    config = ShardConfig(out="harm", seed=seed, synthetic=SyntheticConfig(recipe=recipe))
    unit = Unit("harm", "head", "synthetic", 0)
    lows = [synthetic_low(head, resampler, unit, "T1w", config)[1] for head in heads]
    least, most = percentiles(lows[0], PERCENTILES)
    return [np.clip((low - least) / (most - least), 0, 1).astype(np.float32) for low in lows]


def choose_lesions(high: Image, head: NDArray[np.bool_], trial: Trial) -> list[Lesion]:
    """Choose a place in a head `(X, Y, Z)` for each diameter and change: for dark lesions in its white matter."""
    deep = np.asarray(ndimage.distance_transform_edt(head)) > DEPTH_MM
    start = (len(high) - len(trial.middle(high))) // 2 + int(max(DIAMETERS_MM) / 2)
    deep[:start] = deep[len(high) - start :] = False
    smooth = np.asarray(ndimage.gaussian_filter(high, 3.0))
    uneven = np.asarray(ndimage.gaussian_filter(np.square(high - smooth), 3.0))
    bright = smooth > np.quantile(smooth[deep], 0.7)
    # Where a lesion makes tissue brighter than the normalisation allows, it would be clipped.
    grey = ~bright & (smooth < 0.95 / (1 + max(CHANGES))) & (smooth > np.quantile(smooth[deep], 0.2))
    rng = np.random.default_rng(trial.seed)
    lesions: list[Lesion] = []
    for diameter, change in ((diameter, change) for diameter in reversed(DIAMETERS_MM) for change in CHANGES):
        tissue = deep & (grey if change > 0 else bright)
        tissue &= uneven < np.quantile(uneven[tissue], 0.5)
        for place in rng.permutation(np.argwhere(tissue)):
            if all(np.linalg.norm(place - other.centre) > DISTANCE_MM for other in lesions):
                lesions.append(Lesion(place, diameter, change))
                break
    return lesions


def psnr(image: Image, truth: Image, head: NDArray[np.bool_]) -> float:
    """Compute the PSNR of `image` over the head in dB, with data range 1; all arrays are `(N, Y, Z)`."""
    return float(-10 * np.log10(np.square(image - truth)[head].mean()))


def detail(image: Image, head: NDArray[np.bool_]) -> float:
    """Compute the mean gradient of `image` in the plane of the slices over the head; both are `(N, Y, Z)`."""
    down, across = np.gradient(image, axis=(1, 2))
    return float(np.hypot(down, across)[head].mean())


def contrast_to_noise(image: Image, weight: Image, shell: NDArray[np.bool_]) -> float:
    """Compute the contrast of a lesion to its shell, divided by the standard deviation in the shell.

    Args:
        image: `(N, Y, Z)`.
        weight: `(N, Y, Z)`, share of each voxel that the lesion fills.
        shell: `(N, Y, Z)`.
    """
    inside = float((image * weight).sum() / weight.sum())
    return abs(inside - float(image[shell].mean())) / float(image[shell].std())


def measure_lesions(path: Path, recipe: Recipe, trial: Trial) -> tuple[dict[tuple[float, float], Image], list[float]]:
    """Measure one head.

    Returns:
        (diameter in mm, change) of each lesion -> `(6,)`: the relative change in the truth, in cubic interpolation and
        in the model's output, and their contrast to noise; and the figures of enhancing the head without lesions twice.
    """
    plain, resampler = read_high(path, trial.model.card.geometry)
    head = head_mask(plain.voxels)
    lesions = choose_lesions(plain.voxels, head, trial)
    factor = np.ones(plain.voxels.shape, dtype=np.float32)
    for lesion in lesions:
        factor += lesion.change * lesion.weight(factor.shape)
    changed = replace(plain, voxels=np.clip(plain.voxels * factor, 0, 1))
    lows = make_lows([plain, changed], resampler, recipe, trial.seed)
    pairs = [
        tuple(trial.middle(head.voxels) for head in (plain, changed)),
        tuple(map(trial.middle, lows)),
        tuple(map(trial.restore, lows)),
    ]
    changes: dict[tuple[float, float], Image] = {}
    for lesion in lesions:
        weight = trial.middle(lesion.weight(factor.shape))
        shell = trial.middle(lesion.shell(factor.shape))
        sums = [[float((image * weight).sum()) for image in pair] for pair in pairs]
        contrasts = [contrast_to_noise(after, weight, shell) for _, after in pairs]
        values = [after / before - 1 for before, after in sums] + contrasts
        changes[lesion.diameter_mm, lesion.change] = np.array(values, dtype=np.float32)
    truth, cubic, first = (pair[0] for pair in pairs)
    inside = trial.middle(head)
    twice = lows[0].copy()
    trial.middle(twice)[:] = first
    second = trial.restore(twice)
    figures = [psnr(image, truth, inside) for image in (cubic, first, second)] + [psnr(second, first, inside)]
    return changes, figures + [detail(image, inside) / detail(truth, inside) for image in (cubic, first, second)]


def print_lesions(found: list[dict[tuple[float, float], Image]]) -> None:
    """Print the changes of lesions, averaged over heads."""
    print(f"{'':>14}  {'change inside':^23}  {'change kept':^15}  {'contrast to noise':^20}")
    names = f"{'cubic':>7} {'model':>7}"
    print(f"{'diameter':>8} {'heads':>5}  {'truth':>7} {names}  {names}  {'truth':>6} {'cubic':>6} {'model':>6}")
    for kind in sorted({kind for changes in found for kind in changes}):
        each = np.array([changes[kind] for changes in found if kind in changes])
        truth, cubic, model, *contrasts = each.mean(axis=0).tolist()
        row = f"{truth:>+7.1%} {cubic:>+7.1%} {model:>+7.1%}  {cubic / truth:>7.0%} {model / truth:>7.0%} "
        print(f"{kind[0]:>5.0f} mm {len(each):>5}  {row}" + "".join(f" {contrast:>6.2f}" for contrast in contrasts))


def print_recipe(scans: list[Path], recipe: Recipe, trial: Trial) -> None:
    """Measure and print what needs low fields that are made from high-field scans."""
    results = [measure_lesions(scan, recipe, trial) for scan in scans]
    print(f"\nlesions, low field by the recipe {recipe}")
    print_lesions([changes for changes, _ in results])
    print(f"\nenhanced twice, low field by the recipe {recipe}")
    print(f"{'':<36} {'PSNR (dB)':>32} {'second':>9} {'detail':>26}")
    print(
        f"{'':<36} {'cubic':>10} {'first':>10} {'second':>10} {'to first':>9} {'cubic':>8} {'first':>8} {'second':>8}"
    )
    for scan, (_, figures) in zip(scans, results, strict=True):
        row = "".join(f" {value:>10.2f}" for value in figures[:3]) + f" {figures[3]:>9.2f}"
        print(f"{scan.name:<36}{row}" + "".join(f" {value:>8.2f}" for value in figures[4:]), flush=True)


def measure_high(path: Path, trial: Trial) -> tuple[float, float]:
    """Give a high-field scan to the model as it is, and return the PSNR against the scan and the relative detail."""
    scan = prepare(path, trial.model.card, str(path)).low
    head, given, restored = trial.middle(head_mask(scan)), trial.middle(scan), trial.restore(scan)
    return psnr(restored, given, head), detail(restored, head) / detail(given, head)


def measure_low(path: Path, trial: Trial) -> str:
    """Enhance a low-field scan, and return its row of the table."""
    scan = prepare(path, trial.model.card, str(path)).low
    spacing_mm = read_volume(path).spacing_mm.tolist()
    head, given, restored = trial.middle(head_mask(scan)), trial.middle(scan), trial.restore(scan)
    # The scan was interpolated to voxels of 1 mm, so its shape is its size in mm.
    grids = {
        "low_shape": list(acquired_shape(given.shape, spacing_mm)),
        "low_spacing_mm": spacing_mm,
        "high_shape": list(given.shape),
    }
    geometry = GeometryConfig.from_tree(grids)
    sampling = LowFieldSampling(FieldResampler(geometry, np.zeros(3)), None, 1.0)
    cubic, model = (check_consistency(image, given, sampling).nrmse for image in (given, restored))
    doubt = float(trial.disagreement(scan, restored)[head].mean())
    sampled = [sampling.sample(image)[head][::7] for image in (given, restored)]
    rank = float(np.corrcoef([stats.rankdata(image) for image in sampled])[0, 1])
    classes = np.digitize(sampled[0], threshold_multiotsu(sampled[0], 4))
    means = [float(sampled[1][classes == number].mean()) for number in range(4)]
    order = "".join(f"{' < ' if mean > before else ' > '}{mean:.2f}" for before, mean in itertools.pairwise(means))
    return f"{path.name:<36} {cubic:>7.3f} {model:>7.3f} {doubt:>13.4f} {rank:>6.3f}  {means[0]:.2f}{order}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", nargs="?", type=Path, default=STARTER, help="model file, or name of a model of the package"
    )
    parser.add_argument("--high", nargs="*", type=Path, default=[], metavar="SCAN")
    parser.add_argument("--low", nargs="*", type=Path, default=[], metavar="SCAN")
    parser.add_argument("--recipes", nargs="*", default=["physics", "report"])
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.high + arguments.low:
        print("Name scans with --high and --low.")
        return
    path = find_model(arguments.model)
    trial = Trial(open_model_file(path), arguments.slices, arguments.seed)
    print(f"{path.name}, {arguments.slices} slices at most")
    for recipe in arguments.recipes if arguments.high else []:
        print_recipe(arguments.high, recipe, trial)
    if arguments.high:
        print(f"\nhigh field given to the model\n{'':<36} {'PSNR (dB)':>10} {'detail':>7}")
        for scan in arguments.high:
            print("{:<36} {:>10.2f} {:>7.2f}".format(scan.name, *measure_high(scan, trial)), flush=True)
    if arguments.low:
        print(f"\nlow field\n{'':<36} {'inconsistency':>15} {'':>13} {'rank':>6}  output in classes of the scan")
        print(f"{'':<36} {'cubic':>7} {'model':>7} {'disagreement':>13} {'corr.':>6}  from dark to bright")
        for scan in arguments.low:
            print(measure_low(scan, trial), flush=True)


if __name__ == "__main__":
    main()
