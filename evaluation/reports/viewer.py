"""An offline 3-D viewer, made with nilearn, that shows a restored volume over its cubic interpolation."""

import base64
import io
import re

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from upfield.common.errors import InputError
from upfield.imaging.resample import box_centre, resample_box

# nilearn writes each volume as one colour PNG. At 1 mm, the page would have 20 MB, and loading it would be slow.
SPACING_MM = 1.5
JPEG_QUALITY = 88
SPRITE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
ICON = re.compile(r"<link\b[^>]*\bicon\b[^>]*>")
STYLE = """<style>
body { margin: 0; padding-top: .4rem; overflow: hidden; background: #000; color: #e8eaed;
  font: 15px/1.4 system-ui, sans-serif; }
canvas { touch-action: manipulation; }
p { margin: 0 0 0 1rem; }
input[type=range] { flex: 1; max-width: 30rem; height: 2.5rem; }
</style>"""


def viewer_html(
    cubic: NDArray[np.float32], restored: NDArray[np.float32], spacing_mm: tuple[float, float, float], title: str
) -> str:
    """Build a complete page: three planes with a crosshair, and a slider that fades the restored volume in and out.

    Args:
        cubic: `(X, Y, Z)` in [0, 1], in RAS+ order.
        restored: `(X, Y, Z)` in [0, 1], on the same grid.
        spacing_mm: voxel spacing of both volumes.
        title: title on the page.

    Raises:
        InputError: nilearn is not installed.
    """
    try:
        from nilearn.plotting import view_img
    except ImportError as error:
        raise InputError(
            "nilearn, which draws the viewer, is not installed. Run pip install 'upfield[demo]'."
        ) from error
    # Both volumes get the same isotropic grid, because otherwise nilearn interpolates them again.
    images = [coarsen(image, np.array(spacing_mm)) for image in (cubic, restored)]
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -SPACING_MM * box_centre(images[0].shape)
    below, above = (nib.Nifti1Image(image, affine) for image in images)  # pyright: ignore[reportPrivateImportUsage]
    view = view_img(
        above,
        bg_img=below,
        cut_coords=[0, 0, 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        symmetric_cmap=False,
        threshold=None,
        black_bg=True,
        # By default, nilearn darkens the lower volume. With 0, it only scales the volume by its minimum and maximum.
        dim=0,
        title=title,
        colorbar=False,
    )
    # nilearn fetches its icon from the web, writes black text, and calls the slider `Opacity`.
    page = ICON.sub("", view.get_standalone()).replace("</head>", f"{STYLE}</head>", 1)
    page = page.replace("<p>Opacity</p>", "<p>cubic to restored</p>", 1)
    return SPRITE.sub(lambda match: to_grey_jpeg(match[1]), page)


def coarsen(image: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Resample `(X, Y, Z)` in [0, 1] to the viewer's spacing, over the same field of view."""
    first, second, third = (max(round(float(mm) / SPACING_MM), 1) for mm in np.array(image.shape) * spacing_mm)
    shape = (first, second, third)
    return np.clip(resample_box(image, spacing_mm, box_centre(image.shape), shape, np.full(3, SPACING_MM)), 0, 1)


def to_grey_jpeg(png_base64: str) -> str:
    """Convert a colour PNG that contains only greys to the data URL of a grey JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png_base64))) as image:
        image.convert("L").save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
