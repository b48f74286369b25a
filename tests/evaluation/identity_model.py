"""A model that changes nothing."""

import numpy as np


class IdentityModel:
    """A model whose output is the middle slice of its input."""

    context, normalisation = 0, "any"

    def restore(self, low: np.ndarray) -> np.ndarray:
        """Map `(N, 1 + 2*context, H, W)` to `(N, 1, H, W)`."""
        return low[:, low.shape[1] // 2][:, None].copy()
