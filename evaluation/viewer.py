"""A 3-D viewer of one volume that works offline: nilearn's, with the restored volume over its cubic interpolation."""

import numpy as np
from numpy.typing import NDArray

from upfield.sharding.errors import InputError


def viewer_html(
    cubic: NDArray[np.float32], restored: NDArray[np.float32], spacing_mm: tuple[float, float, float], title: str
) -> str:
    """Give a whole page: three planes with a crosshair, and a slider that fades the restored volume in and out.

    Args:
        cubic: `(X, Y, Z)` in [0, 1], in RAS+ order.
        restored: the same shape.
        spacing_mm: of their voxels.
        title: written on it.

    Raises:
        InputError: nilearn is not installed.
    """
    try:
        import nibabel as nib
        from nilearn.plotting import view_img
    except ImportError as error:
        raise InputError("expected nilearn, which draws the viewer, found none; pip install 'upfield[demo]'") from error
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(cubic.shape) - 1) / 2
    images = [nib.Nifti1Image(image, affine) for image in (cubic, restored)]  # pyright: ignore[reportPrivateImportUsage]
    view = view_img(
        images[1],
        bg_img=images[0],
        cut_coords=[0, 0, 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        symmetric_cmap=False,
        threshold=None,
        black_bg=True,
        resampling_interpolation="continuous",
        title=title,
        colorbar=False,
    )
    return view.get_standalone()
