"""Memory for batches, taken again once nobody holds it: zeroing fresh pages costs the kernel as much as a copy."""

import weakref
from collections import deque

import numpy as np

KEPT = 2
"""Arrays kept of each kind: one batch that is used while the next one is read."""


class Buffers:
    """Float32 arrays by shape; an array returns here when the last tensor or view of it is gone. Pickles empty."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], deque[np.ndarray]] = {}
        self._zeros: dict[tuple[int, ...], np.ndarray] = {}

    def __reduce__(self) -> "tuple[type[Buffers], tuple[()]]":
        return Buffers, ()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of any content. Kinds are told apart by the shape of a row; a larger batch's memory serves too."""
        size, free = int(np.prod(shape)), self._free.setdefault(shape[1:], deque(maxlen=KEPT))
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, np.float32)
        if memory.size < size:
            memory = np.empty(size, np.float32)
        array = memory[:size].reshape(shape)
        # What torch.from_numpy and tensors made of it hold is this array, not the memory below.
        weakref.finalize(array, free.append, memory).atexit = False
        return array

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        """The same zeros each time, of untouched pages that take no memory; what a batch holds is never written to."""
        have = self._zeros.get(shape[1:])
        if have is None or len(have) < shape[0]:
            have = self._zeros[shape[1:]] = np.zeros(shape, np.float32)
        return have[: shape[0]]
