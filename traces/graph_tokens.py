"""Up to where microbatches are launched as CUDA graphs."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRAPH_TOKENS: Final = 1536
"""A microbatch of at most so many tokens is over before its kernels could be launched one by one: of 8 layers of
Llama-3.1-8B on an H100, 232 tokens took 6.6 ms in place of 22.5, 997 tokens 19 in place of 28, 1,506 tokens 28.5 in
place of 32 and 47, and 2,014 tokens 37.8 in place of 36.7 and 40.8 (2026-11-26)."""
STEP_TOKENS: Final = 128
"""They are filled up to a multiple of this: the height of the library's tiles, which are computed whole anyway."""


def filled_tokens(tokens: ArrayLike, *, replayed: ArrayLike) -> NDArray[np.float64]:
    """Rows that are computed for microbatches of so many tokens, `replayed` or not."""
    own = np.asarray(tokens, dtype=np.float64)
    return np.where(np.asarray(replayed, dtype=np.bool_), np.ceil(own / STEP_TOKENS) * STEP_TOKENS, own)
