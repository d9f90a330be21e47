"""Names of the arrays that go through the store."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # (n,) row numbers, or places in a table
Mask = NDArray[np.bool_]  # (n,) which of them
Bytes = NDArray[np.uint8]  # statuses (n,), digests (n, 32), memory as bytes
Crcs = NDArray[np.uint32]  # (n,) a crc32c a row
Values = NDArray[Any]  # (n, *shape of a row) of any dtype
