"""The metrics of an evaluation, by name, with their definitions.

A slice metric has one value per sagittal slice, and a volume metric has one value per volume. An undefined value is
NaN, and the PSNR of a perfect image is infinite. Both are counted and left out of means.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import normalized_root_mse, peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from upfield.model import quality
from upfield.model.metric_names import is_error

LEAST_FOREGROUND = 0.05
# MS-SSIM halves the image four times and then applies a window of 11 pixels. torchmetrics refuses smaller images.
LEAST_MS_SSIM_SIZE = 176
UNIFORM_WINDOW = 7
ULF_ENC_PSNR, ULF_ENC_EPSILON = 32.0, 1e-8
CHUNK = 16


@dataclass(frozen=True)
class ImagePair:
    """A restored volume and its target, as tensors on the device that computes the metrics."""

    restored: Tensor
    """`(X, 1, Y, Z)` float32 in [0, 1]."""
    high: Tensor
    """`(X, 1, Y, Z)` float32 in [0, 1]."""
    head: Tensor
    """`(X, 1, Y, Z)` bool, True for voxels of the head in `high`."""

    @property
    def has_head(self) -> Tensor:
        """`(X,)` bool, True for slices of which the head fills at least LEAST_FOREGROUND."""
        return self.head.float().mean(dim=(1, 2, 3)) >= LEAST_FOREGROUND

    def numpy(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        """Return restored volume, target and head as arrays `(X, Y, Z)` on the CPU."""
        restored, high, head = (tensor[:, 0].cpu().numpy() for tensor in (self.restored, self.high, self.head))
        return restored, high, head


def psnr_slice(pair: ImagePair) -> Tensor:
    """Compute the PSNR of each whole slice, `(X,)` in dB; infinite for a perfect slice."""
    return quality.psnr_slice(pair.restored, pair.high)


def psnr_slice_foreground(pair: ImagePair) -> Tensor:
    """Compute the PSNR of each whole slice, `(X,)` in dB; NaN for slices with too little of the head."""
    return psnr_slice(pair).where(pair.has_head, torch.nan)


def psnr_slice_head(pair: ImagePair) -> Tensor:
    """Compute the PSNR over the head in each slice, `(X,)` in dB; NaN for slices with too little of the head."""
    squared = (pair.restored - pair.high).square() * pair.head
    error = squared.sum(dim=(1, 2, 3)) / pair.head.sum(dim=(1, 2, 3))
    return (10 * torch.log10(quality.DATA_RANGE**2 / error)).where(pair.has_head, torch.nan)


def ssim_slice(pair: ImagePair) -> Tensor:
    """Compute the SSIM of each whole slice, `(X,)`, with an 11 x 11 Gaussian window (Wang et al. 2004)."""
    return in_chunks(quality.ssim_slice, pair.restored, pair.high)


def in_chunks(function: Callable[[Tensor, Tensor], Tensor], restored: Tensor, high: Tensor) -> Tensor:
    """Apply a function to a few pairs of images at a time, on as many threads as torch uses on a CPU.

    Args:
        function: maps restored and high-field images, both `(n, 1, H, W)`, to `(n,)`.
        restored: `(N, 1, H, W)`.
        high: `(N, 1, H, W)`.

    Returns:
        `(N,)`.
    """
    chunks = (restored.split(CHUNK), high.split(CHUNK))
    threads = torch.get_num_threads() if restored.device.type == "cpu" else 1
    with without_onednn(), ThreadPoolExecutor(threads) as pool:
        return torch.cat(list(pool.map(function, *chunks)))


@contextmanager
def without_onednn() -> Iterator[None]:
    """Turn off oneDNN on the CPU, because with oneDNN a window over a single channel takes twice as long."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def mae_slice(pair: ImagePair) -> Tensor:
    """Compute the mean absolute error of each whole slice, `(X,)`, intensities in [0, 1]."""
    return quality.mae_slice(pair.restored, pair.high)


def ms_ssim_slice(pair: ImagePair) -> Tensor:
    """Compute the MS-SSIM of each whole sagittal slice, `(X,)`; NaN for slices that are too small."""
    return _ms_ssim(pair.restored, pair.high)


def ms_ssim_axial(pair: ImagePair) -> float:
    """Compute the mean MS-SSIM over axial slices, each stretched to the range [0, 1]; NaN if undefined."""
    restored, high = (_stretch(image[:, 0].permute(2, 0, 1)[:, None]) for image in (pair.restored, pair.high))
    values = _ms_ssim(restored, high)
    # A slice without contrast cannot be scaled to [0, 1].
    defined = values[values.isfinite()]
    return float(defined.mean()) if len(defined) else float("nan")


def _stretch(images: Tensor) -> Tensor:
    """Scale each image of `(N, 1, H, W)` to [0, 1] by its own minimum and maximum; NaN if the two are equal."""
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def _ms_ssim(restored: Tensor, high: Tensor) -> Tensor:
    """Compute the MS-SSIM `(N,)` of images `(N, 1, H, W)` (Wang et al. 2003); NaN if too small for five scales."""
    if min(high.shape[-2:]) < LEAST_MS_SSIM_SIZE:
        return torch.full((len(high),), torch.nan)

    def measure(restored: Tensor, high: Tensor) -> Tensor:
        # A negative similarity at a coarse scale has no fractional power. `relu` sets it to zero.
        values = multiscale_structural_similarity_index_measure(
            restored, high, data_range=quality.DATA_RANGE, reduction="none", normalize="relu"
        )
        return values.reshape(-1)

    return in_chunks(measure, restored, high)


def psnr_volume(pair: ImagePair) -> float:
    """Compute the PSNR of the volume in dB, with the maximum of `high` as the range; NaN if `high` is all zero."""
    restored, high, _ = pair.numpy()
    if not high.max() > 0:
        return float("nan")
    if np.array_equal(restored, high):
        return float("inf")
    return float(peak_signal_noise_ratio(high, restored, data_range=float(high.max())))


def ssim_volume(pair: ImagePair) -> float:
    """Compute the mean SSIM over sagittal slices with a 7 x 7 uniform window, as fastMRI does; NaN if undefined."""
    restored, high, _ = pair.numpy()
    most = float(high.max())
    if not most > 0 or min(high.shape[1:]) < UNIFORM_WINDOW:
        return float("nan")
    values = [
        structural_similarity(h, r, win_size=UNIFORM_WINDOW, data_range=most)
        for r, h in zip(restored, high, strict=True)
    ]
    return float(np.mean(values))


def nrmse(pair: ImagePair) -> float:
    """Compute the norm of the error divided by the norm of `high`; NaN if `high` is all zero."""
    restored, high, _ = pair.numpy()
    if not high.any():
        return float("nan")
    return float(normalized_root_mse(high, restored, normalization="euclidean"))


def mae(pair: ImagePair) -> float:
    """Compute the mean absolute error of the volume, intensities in [0, 1]."""
    return float((pair.restored - pair.high).abs().double().mean())


def score_ulf_enc(pair: ImagePair) -> float:
    """Compute the score of one volume by the formula of the ULF-EnC challenge; NaN if undefined.

    It follows `final_evaluation_script.py` of github.com/khtohidulislam/ULF-EnC-Challenge. METRICS states what differs.
    """
    restored, high, head = pair.numpy()
    if not head.any() or min(high.shape) < UNIFORM_WINDOW or restored.min() == restored.max():
        return float("nan")
    # Both volumes are scaled before the background is set to zero, so the minimum need not lie inside the head.
    restored, high = (_own_range(volume) * head for volume in (restored, high))
    ssim_and_map = structural_similarity(
        high, restored, win_size=UNIFORM_WINDOW, data_range=quality.DATA_RANGE, full=True
    )
    ssim = np.asarray(ssim_and_map[1])[head].mean()
    error = (restored - high)[head]
    psnr = np.mean(10 * np.log10(quality.DATA_RANGE**2 / (np.square(error) + ULF_ENC_EPSILON)))
    nmse = min(np.square(error).sum() / np.square(high[head]).sum(), 1.0)
    return float(0.7 * ssim + 0.1 * psnr / ULF_ENC_PSNR + 0.1 * (1 - np.abs(error).mean()) + 0.1 * (1 - nmse))


def _own_range(volume: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scale a volume `(X, Y, Z)` to [0, 1] by its own minimum and maximum."""
    least = volume.min()
    return (volume.astype(np.float64) - least) / (volume.max() - least)


@dataclass(frozen=True)
class Metric:
    """One metric, and how to present it."""

    name: str
    """Name in metrics.json, tables and CSV columns."""
    level: Literal["slice", "volume"]
    """`slice` if the metric has one value per slice, `volume` if it has one per volume."""
    function: Callable[[ImagePair], Tensor] | Callable[[ImagePair], float]
    """Function that returns `(X,)` for a slice metric, and one number for a volume metric."""
    definition: str
    """One sentence, stored in metrics.json."""
    unit: str = ""
    """`dB`, or empty for a metric without a unit."""

    @property
    def higher_is_better(self) -> bool:
        """True for similarities, False for error measures."""
        return not is_error(self.name)

    @property
    def digits(self) -> int:
        """Number of decimals to show."""
        return 2 if self.unit == "dB" else 4

    @property
    def label(self) -> str:
        """Name for tables."""
        words = self.name.replace("ms_ssim", "MS-SSIM").replace("psnr", "PSNR").replace("ssim", "SSIM")
        for name in ("mae", "nrmse"):
            words = words.upper() if words == name else words.replace(f"{name}_", f"{name.upper()}_")
        return words.replace("score_ulf_enc", "ULF-EnC score").replace("_", " ")


HEAD = (
    "head: the voxels above half of Otsu's threshold of the high-field volume, without small parts, closed, with holes "
    "filled"
)
FOREGROUND = f"only slices in which the head fills at least {LEAST_FOREGROUND:.0%}"
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "psnr_slice",
            "slice",
            psnr_slice,
            "peak signal-to-noise ratio of a whole sagittal slice, data range 1; slices without any error left out",
            "dB",
        ),
        Metric("psnr_slice_foreground", "slice", psnr_slice_foreground, f"psnr_slice, {FOREGROUND} ({HEAD})", "dB"),
        Metric("psnr_slice_head", "slice", psnr_slice_head, f"PSNR of the pixels inside the head, {FOREGROUND}", "dB"),
        Metric(
            "ssim_slice",
            "slice",
            ssim_slice,
            "structural similarity of a whole sagittal slice, 11 x 11 Gaussian window of sigma 1.5, data range 1 "
            "(torchmetrics)",
        ),
        Metric(
            "ms_ssim_slice",
            "slice",
            ms_ssim_slice,
            "multi-scale structural similarity of a whole sagittal slice: five scales, 11 x 11 Gaussian window of "
            "sigma 1.5, data range 1 (torchmetrics); not defined below 176 x 176 pixels",
        ),
        Metric(
            "mae_slice",
            "slice",
            mae_slice,
            "mean absolute error of a whole sagittal slice, intensities in [0, 1]",
        ),
        Metric(
            "ms_ssim_axial",
            "volume",
            ms_ssim_axial,
            "multi-scale structural similarity as in ms_ssim_slice, of the re-stacked volume's axial slices, each of "
            "restored and high scaled by its own minimum and maximum, mean over the slices that have any contrast",
        ),
        Metric(
            "psnr_volume",
            "volume",
            psnr_volume,
            "peak signal-to-noise ratio of the volume, data range: the high-field volume's maximum",
            "dB",
        ),
        Metric(
            "ssim_volume",
            "volume",
            ssim_volume,
            "structural similarity, mean over sagittal slices, 7 x 7 uniform window, data range: the high-field "
            "volume's maximum (scikit-image, as fastMRI)",
        ),
        Metric(
            "nrmse",
            "volume",
            nrmse,
            "root of the squared error over the high-field volume's squared intensities (scikit-image, euclidean)",
        ),
        Metric("mae", "volume", mae, "mean absolute error of the volume, intensities in [0, 1]"),
        Metric(
            "score_ulf_enc",
            "volume",
            score_ulf_enc,
            "0.7 SSIM + 0.1 PSNR / 32 + 0.1 (1 - MAE) + 0.1 (1 - NMSE), the formula of the ULF-EnC challenge (MICCAI "
            "2025): restored and high are each scaled to [0, 1] by their own minimum and maximum, then set to zero "
            "outside the head; SSIM in 3-D under a uniform window of 7 voxels, PSNR the mean over voxels of "
            "10 log10(1 / (error^2 + 1e-8)), NMSE at most 1, all over the voxels of the head. Three things differ from "
            "the challenge, so the score cannot be compared with its ranking. The head is found in each high-field "
            "volume, whereas the organisers mask all contrasts of a subject with the mask of its T1w scan. The volumes "
            "are on the grid of the shard set and clipped at its percentiles. The mean is over the volumes of the "
            "split, whereas the challenge averages over 15 subjects with three contrasts each",
        ),
    )
}
SLICE_METRICS = tuple(name for name, metric in METRICS.items() if metric.level == "slice")
VOLUME_METRICS = tuple(name for name, metric in METRICS.items() if metric.level == "volume")
