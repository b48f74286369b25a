"""A model in memory, which restores scans that are arrays."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from upfield.common.errors import InputError, VolumeError, expect_choice
from upfield.export.configuration import STARTER, Device, Engine
from upfield.export.modelfile.card import ModelCard
from upfield.export.modelfile.engines import open_model_file
from upfield.export.pretrained.packaged_model import find_model
from upfield.export.scans.restoration import Restorer, restore_volume
from upfield.export.scans.scan import finish, prepare_volume
from upfield.export.scans.scan_claim import ScanClaim
from upfield.imaging.contrast import parse_contrast
from upfield.imaging.formats.file_header import SCANNER, Header, VoxelLayout
from upfield.imaging.volume import Volume, to_ras

WHERE = "voxels"


@dataclass(frozen=True)
class Model:
    """A model that restores scans. `load_model` returns it.

    Examples:
        >>> import upfield
        >>> model = upfield.load_model("model.onnx")
        >>> model
        Model(model.onnx on CPUExecutionProvider)
        >>> model.card.context, model.card.tree["step"]
        (0, 2)
    """

    path: Path
    """The run folder or the model file."""
    card: ModelCard
    """Description of the training data. `card.tree` holds all metadata, as a model file does."""
    provider: str
    """Engine and device that run the network, such as `PyTorch on cpu`."""
    restorer: Restorer
    """Maps slices to restored slices."""
    batch_size: int
    """Slices restored at once."""

    def __repr__(self) -> str:
        """Return the model's path and what runs it."""
        return f"Model({self.path} on {self.provider})"

    def restore(self, voxels: ArrayLike, affine: ArrayLike, *, contrast: str | None = None) -> Volume:
        """Restore a scan that is given as an array.

        The values are those that `upfield enhance` writes for a file with the same voxels and affine. (A run folder is
        computed in PyTorch, so its values differ from those of the exported file by rounding.)

        Args:
            voxels: `(X, Y, Z)` real numbers in any unit: one scan on any grid, with its axes in any order.
            affine: `(4, 4)`, voxel index -> world mm, which says where the axes point. With nibabel, it is
                `image.affine`.
            contrast: contrast of the scan, such as `T1w`. If the model was trained on other contrasts, the scan is
                refused. By default, a warning says that the contrast is not known.

        Returns:
            A volume with `voxels` `(X', Y', Z')` float32 in [0, 1] and `affine` `(4, 4)`. The grid has voxels of 1 mm,
            covers the scan's field of view, and keeps the order and the directions of the axes of `voxels`.

        Raises:
            InputError: `voxels` is not one 3-D array of finite real numbers, is constant, or is not the size of a head,
                `affine` is missing or cannot be inverted, or the contrast is refused.

        Warns:
            UserWarning: something about the scan is doubtful, for example that it is a label map. `upfield enhance`
                prints the same sentences.

        Examples:
            >>> import nibabel, upfield
            >>> image = nibabel.load("scan.nii.gz")
            >>> model = upfield.load_model("model.onnx")
            >>> restored = model.restore(image.get_fdata(), image.affine)
            >>> image.shape, nibabel.aff2axcodes(image.affine)
            ((28, 10, 24), ('P', 'S', 'R'))
            >>> restored.voxels.shape, nibabel.aff2axcodes(restored.affine)
            ((45, 50, 38), ('P', 'S', 'R'))
        """
        scan, header = read_arrays(voxels, affine)
        if contrast is not None:
            try:
                contrast = parse_contrast(contrast)
            except ValueError as error:
                raise InputError(f"contrast: {error}.") from error
        claim = ScanClaim(stated=contrast, option="contrast=")
        model_input = prepare_volume(scan, header, self.card, WHERE, claim)
        for note in model_input.notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        return finish(model_input, restore_volume(model_input.low, self.restorer, self.batch_size))


def load_model(
    model: str | Path | None = None, *, device: Device = "auto", engine: Engine = "onnx", batch_size: int = 4
) -> Model:
    """Load a model.

    Args:
        model: a model file (`.onnx`), the folder of a run, whose best model is then run in PyTorch, or the name of a
            model that comes with the package. By default, this is the starter model. `upfield models` lists the models
            of the package. All results are for research only.
        device: `auto` uses a GPU if there is one; `cuda` and `tensorrt` fail if they cannot run.
        engine: `onnx` or `torch`, which runs a model file.
        batch_size: slices restored at once, at least 1.

    Raises:
        InputError: there is no such model, it is damaged, or the device cannot be used.

    Warns:
        UserWarning: the model was worse than cubic interpolation on its validation slices.

    Examples:
        >>> import upfield
        >>> upfield.load_model("run").provider
        'PyTorch on cpu'
        >>> upfield.load_model().card.contrasts
        ('T1w',)
    """
    expect_choice("device", device, get_args(Device))
    expect_choice("engine", engine, get_args(Engine))
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, found {batch_size}.")
    path = find_model(STARTER if model is None else Path(model), or_run=True)
    if path.is_dir():
        # torch takes seconds to import.
        from upfield.export.scans.best_restorer import BestRestorer

        restorer = BestRestorer(path, device)
    else:
        restorer = open_model_file(path, engine, device, batch_size=batch_size)
    card = restorer.card
    if warning := card.warn_if_below_cubic(path.name):
        warnings.warn(warning.removeprefix("warning: "), UserWarning, stacklevel=2)
    return Model(path, card, restorer.provider, restorer, batch_size)


def read_arrays(voxels: ArrayLike, affine: ArrayLike) -> tuple[Volume, Header]:
    """Check a scan that is an array, and reorient it to RAS+.

    Args:
        voxels: `(X, Y, Z)` real numbers.
        affine: `(4, 4)`, voxel index -> world mm.

    Returns:
        The scan, and a header that states the affine and nothing else.

    Raises:
        InputError: the arrays are not one usable scan.
    """
    array, matrix = _real(voxels, "voxels"), _real(affine, "affine").astype(np.float64)
    if array.ndim != 3 or min(array.shape) < 2:
        remedy = "Choose one volume, such as voxels[..., 0]." if array.ndim == 4 else "Pass one whole volume."
        raise InputError(f"voxels: expected an array (X, Y, Z), found shape {array.shape}. {remedy}")
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        found = f"shape {matrix.shape}" if matrix.shape != (4, 4) else f"the last row {matrix[3].tolist()}"
        raise InputError(
            f"affine: expected a (4, 4) array whose last row is 0, 0, 0, 1, found {found}. With nibabel, it is "
            "image.affine."
        )
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise InputError(f"affine: the matrix cannot be inverted: {matrix.tolist()}. Pass the affine of the scan.")
    if bad := int(array.size - np.isfinite(array).sum()):
        raise InputError(
            f"voxels: {bad} of {array.size} are NaN or infinite. Replace them, for example with numpy.nan_to_num."
        )
    if array.min() == array.max():
        raise InputError(f"voxels: every voxel has the value {array.flat[0]:g}. Check that the array holds the scan.")
    layout = VoxelLayout(nib.Nifti1Image, array.shape, np.dtype(np.float32))
    header = Header(
        layout, matrix, is_oriented=True, is_placed=True, has_spacing=(True, True, True), sform_code=SCANNER
    )
    try:
        return to_ras(array, matrix, WHERE), header
    except VolumeError as error:
        raise InputError(str(error)) from error


def _real(values: Any, name: str) -> NDArray[Any]:
    """Return `values` as an array of any shape whose type is real."""
    array = np.asarray(values)
    if values is None or array.dtype.kind not in "iufb":
        found = "None" if values is None else f"type {array.dtype}"
        remedy = "Pass the affine of the scan" if name == "affine" else "Pass the voxels of the scan"
        raise InputError(f"{name}: expected an array of real numbers, found {found}. {remedy}.")
    return array
