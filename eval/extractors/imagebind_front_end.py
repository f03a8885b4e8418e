"""What ImageBind (arXiv 2305.05665) is shown of a clip: three pieces of its sound, nine of its picture.

Sound: three pieces of 2 s, evenly spaced from the first to the last; of each, Kaldi's 128 log filter-bank energies of
198 frames, six frames of the value 0 (half a deviation above the mean of the training set; silence would be -15.94),
and then (x + 4.268) / 9.138. A wave shorter than 2 s is taken whole, three times, and followed by more such frames.
Taking the mean of a piece away, as the published code does, changes nothing but rounding: Kaldi takes it from every
frame.

Picture: frames 2 s apart whose short side has 224 pixels, three squares of 224 along the long side (start, middle,
end), and in each square every two successive frames: 4 frames of an 8-s clip are 3 pairs in 3 squares.

Differences from av-benchmark:
- Its decoder's rate filter takes, at 0.5 frames a second, the last frame before each odd second: 0.96, 2.96, 4.96 and
  6.96 s at 25 frames a second. `read_frames` takes the first frame at or after a time; asked for the odd seconds, as
  `imagebind_frames` does, it gives the next frame, one period later.
- Frames are resized by FFmpeg's bicubic filter, not torch's with antialiasing.
- Pieces of sound start at the sample floor(i (n - 32 000) / 2), i = 0, 1, 2; in floating point, some lengths lose one.
- The published code removes means in place, so that pieces that overlap (waves under 6 s) start from each other's
  result. Here each starts from the wave itself.
- Of stereo files it hears the left channel alone; here the mean of the channels, as for every other model.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from eval.extractors.kaldi_fbank import KaldiFbank
from teacher.encoders.base import Frames
from teacher.encoders.clip import PIXEL_MEAN, PIXEL_STD
from teacher.media import FrameRequest, MediaInfo, probe, read_frames

SAMPLE_RATE = 16_000
PIECES = 3
PIECE_SAMPLES = 32_000
"""2 s."""
MELS, FRAMES = 128, 204
MEAN, SPREAD = -4.268, 9.138
SHORTEST = 400
"""Samples of one frame, 25 ms; the published code divides by zero below."""
FPS = 0.5
FIRST_FRAME_S = 1.0
"""Time of the first frame; the others follow every 2 s."""
PIXELS = 224
CROPS = 3


def piece_starts(samples: int) -> tuple[int, int, int]:
    """First samples of the three pieces: 0, the middle and the end of the room there is, rounded down."""
    room = max(0, samples - PIECE_SAMPLES)
    return 0, room // 2, room


def sound_pieces(waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips 3 128 204"]:
    """Normalised log energies of the three pieces, mel bands by frames, in the precision of `waves`.

    Raises ValueError for waves shorter than one frame (25 ms).
    """
    pieces = torch.stack([waves[:, start : start + PIECE_SAMPLES] for start in piece_starts(waves.shape[1])], dim=1)
    energies = KaldiFbank()(pieces - pieces.mean(dim=-1, keepdim=True)).transpose(-1, -2)
    return (functional.pad(energies, (0, FRAMES - energies.shape[-1])) - MEAN) / SPREAD


def frame_request(info: MediaInfo) -> FrameRequest:
    """Frames of a file with their short side at 224 pixels and nothing cut off, the long side rounded down.

    Raises ValueError for a file without picture.
    """
    if not info.has_video:
        raise ValueError(f"{info.path}: has no picture")
    short = min(info.width, info.height)
    height, width = PIXELS * info.height // short, PIXELS * info.width // short
    return FrameRequest(fps=FPS, height=height, width=width, fit="stretch")


def imagebind_frames(
    path: Path, *, start_s: float = 0.0, duration_s: float
) -> UInt8[np.ndarray, "frames 3 height width"]:
    """The int(duration / 2) frames at 1, 3, 5 ... s after `start_s`, short side 224: what `ImageBind.see` is given.

    Raises MediaError as `probe` and `read_frames`, ValueError for a file without picture or less than 2 s.
    """
    request = frame_request(probe(path))
    return read_frames(path, [request], start_s=start_s + FIRST_FRAME_S, duration_s=duration_s)[0]


def crop_offsets(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Top left corners (row, column) of the three squares: start, middle (rounded up) and end of the long side."""
    down, right = height - PIXELS, width - PIXELS
    if height > width:
        return tuple((row, (right + 1) // 2) for row in (0, (down + 1) // 2, down))
    return tuple(((down + 1) // 2, column) for column in (0, (right + 1) // 2, right))


def checked_picture(frames: Frames) -> UInt8[Tensor, "frames 3 height width"]:
    """Frames as a tensor; ValueError unless uint8 of (T, 3, H, W), two frames or more, short side 224 pixels."""
    tensor = torch.as_tensor(frames)
    if (
        tensor.ndim != 4
        or tensor.shape[1] != 3
        or min(tensor.shape[2:], default=0) != PIXELS
        or tensor.dtype != torch.uint8
    ):
        raise ValueError(
            f"frames must be uint8 of shape (T, 3, H, W) with a short side of {PIXELS}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if len(tensor) < 2:
        raise ValueError(f"ImageBind needs at least 2 frames (4 s of picture), got {len(tensor)}")
    return tensor


def picture_clips(frames: UInt8[Tensor, "frames 3 height width"]) -> Float[Tensor, "clips 3 2 224 224"]:
    """All pairs of successive frames in all three squares, 3 (T - 1) clips, less CLIP's mean and over its deviation.

    Pair by pair, in each the three squares in order; channels come before time, as a convolution over both wants it.
    """
    mean, std = (torch.tensor(x, device=frames.device)[:, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    squares = torch.stack(
        [frames[:, :, row : row + PIXELS, column : column + PIXELS] for row, column in crop_offsets(*frames.shape[2:])],
        dim=1,
    )
    normal = (squares / 255.0 - mean) / std
    return torch.stack((normal[:-1], normal[1:]), dim=3).flatten(0, 1)
