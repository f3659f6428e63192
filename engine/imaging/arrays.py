"""Names for the array types of this package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Pixels of any shape before they are 8-bit: integers or floats, never complex or objects.
Pixels = npt.NDArray[np.integer | np.floating]
Bytes = npt.NDArray[np.uint8]
