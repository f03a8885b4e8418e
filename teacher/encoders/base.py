"""The interfaces of the feature encoders, and checks that their adapters have in common.

`embedded.py` holds encoders without weights, `clip.py` and `synchformer.py` those that MMAudio was trained with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from teacher.files.errors import WeightsError
from teacher.media import FrameRequest

Frames = UInt8[np.ndarray, "frames 3 height width"] | UInt8[Tensor, "frames 3 height width"]
"""RGB frames, uint8, in the rate and size that the encoder requests."""


class ImageEncoder(Protocol):
    """Encodes frames at 8 per second, (T, 3, height, width) uint8, to one feature of unit length each, (T, width)."""

    @property
    def name(self) -> str:
        """Name with version: features of different names do not mix."""
        ...

    @property
    def width(self) -> int:
        """Channels of a feature."""
        ...

    @property
    def request(self) -> FrameRequest:
        """Rate and size of the frames it is given."""
        ...

    def __call__(self, frames: Frames) -> Float[Tensor, "frames width"]: ...


class SyncEncoder(Protocol):
    """Encodes frames at 25 per second: eight features per segment of 16 frames, segments starting every 8 frames.

    (T, 3, height, width) uint8 -> (8 S, width) with S = (T - 16) // 8 + 1.
    """

    @property
    def name(self) -> str:
        """Name with version: features of different names do not mix."""
        ...

    @property
    def width(self) -> int:
        """Channels of a feature."""
        ...

    @property
    def request(self) -> FrameRequest:
        """Rate and size of the frames it is given."""
        ...

    def __call__(self, frames: Frames) -> Float[Tensor, "slots width"]: ...


class TextEncoder(Protocol):
    """Encodes texts to a feature of unit length for every position, (texts, positions, width)."""

    @property
    def name(self) -> str:
        """Name with version: features of different names do not mix."""
        ...

    @property
    def width(self) -> int:
        """Channels of the feature of one position."""
        ...

    @property
    def positions(self) -> int:
        """Positions of every text, padding included."""
        ...

    @property
    def shared_positions(self) -> int:
        """Number of leading positions whose feature is the same for every text."""
        ...

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "batch positions width"]: ...


def checked_frames(frames: Frames, request: FrameRequest) -> UInt8[Tensor, "frames 3 height width"]:
    """Frames (T, 3, height, width) uint8 as a tensor; ValueError unless they have the size of `request`."""
    tensor = torch.as_tensor(frames)
    if tensor.ndim != 4 or tensor.shape[1:] != (3, request.height, request.width) or tensor.dtype != torch.uint8:
        raise ValueError(
            f"frames must be uint8 of shape (T, 3, {request.height}, {request.width}), "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor


def require_files(weights_dir: Path, *files: str) -> None:
    """Raise WeightsError if a folder of weights lacks some of `files`; it names the commands that make them."""
    missing = [file for file in files if not (weights_dir / file).is_file()]
    if missing:
        raise WeightsError(
            f"{weights_dir} lacks {' and '.join(missing)}; fetch the official files with mf-fetch and convert them "
            "with mf-convert"
        )
