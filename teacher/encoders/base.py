"""What every feature encoder of this project offers; weight-free ones live in teacher/encoders/embedded.py."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from teacher.data.media import FrameRequest

Frames = UInt8[np.ndarray, "frames 3 height width"] | UInt8[Tensor, "frames 3 height width"]
"""RGB frames as the request of the encoder asked for them."""


class ImageEncoder(Protocol):
    """One feature per frame at 8 frames a second, of unit length as CLIP's."""

    @property
    def name(self) -> str:
        """Name with version: features of different names do not mix."""
        ...

    @property
    def request(self) -> FrameRequest:
        """Rate and size of the frames it is given."""
        ...

    def __call__(self, frames: Frames) -> Float[Tensor, "frames 1024"]: ...


class SyncEncoder(Protocol):
    """Eight features per segment of 16 frames at 25 frames a second, segments starting every 8 frames."""

    @property
    def name(self) -> str:
        """Name with version: features of different names do not mix."""
        ...

    @property
    def request(self) -> FrameRequest:
        """Rate and size of the frames it is given."""
        ...

    def __call__(self, frames: Frames) -> Float[Tensor, "slots 768"]: ...


class TextEncoder(Protocol):
    """Features of every text position, each of unit length."""

    @property
    def name(self) -> str:
        """Name with version: features of different names do not mix."""
        ...

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "batch 77 1024"]: ...
