"""Enhance a scan and read the result as an array: python examples/enhance_from_python.py SCAN OUT [MODEL]

`SCAN` is a NIfTI or MGH file, and `OUT` is the `.nii.gz` file to write. Without `MODEL`, the program uses the starter
model. The second part restores the same scan in memory, for programs that already have the voxels.
"""

import sys
from pathlib import Path

import numpy as np

import upfield

if len(sys.argv) < 3:
    sys.exit(__doc__)
scan, out, *models = sys.argv[1:]
model = upfield.load_model(*models)
upfield.enhance(scan, out, model, keep_ras=True)
written = upfield.read_scan(out)
print(f"{Path(out).name}: {written.voxels.shape} voxels of 1 mm, mean {written.voxels.mean():.3f}")

low = upfield.read_scan(scan)
restored = model.restore(low.voxels, low.affine)
print("restored in memory, the values are equal:", np.array_equal(restored.voxels, written.voxels))
