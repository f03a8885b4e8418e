"""Encoders without weights: fixed image, motion and text features with the lengths and widths of CLIP and Synchformer.

With them the whole system runs, and is tested, offline on a CPU. They are not trained: the network has to learn which
sound belongs to a colour grid or a motion centroid. Equal inputs give equal features on every machine up to float32
rounding, because projections come from a hash, not from a random number generator whose stream may change.
"""

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from teacher.encoders.base import Frames, checked_frames
from teacher.media import FrameRequest
from teacher.network.sequence import (
    FEATURES_PER_SEGMENT,
    IMAGE_FPS,
    MMAUDIO_WIDTHS,
    SEGMENT_FRAMES,
    SEGMENT_STRIDE,
    SYNC_FPS,
)

IMAGE_REQUEST = FrameRequest(fps=IMAGE_FPS, height=32, width=32, fit="stretch")
MOTION_REQUEST = FrameRequest(fps=SYNC_FPS, height=48, width=48, fit="crop")
IMAGE_WIDTH, MOTION_WIDTH = MMAUDIO_WIDTHS.image, MMAUDIO_WIDTHS.sync
TEXT_WIDTH, TEXT_POSITIONS = MMAUDIO_WIDTHS.text, MMAUDIO_WIDTHS.text_tokens
LUMA = (0.299, 0.587, 0.114)


def hashed_signs(name: str, count: int) -> Float[Tensor, " count"]:
    """`count` signs +1 or -1, the bits of SHAKE-256 of `name`."""
    digest = hashlib.shake_256(name.encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:count]
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)


@functools.lru_cache(maxsize=8)
def projection(name: str, in_dim: int, out_dim: int) -> Float[Tensor, "in_dim out_dim"]:
    """Matrix with orthonormal rows (in_dim <= out_dim), so it preserves distances; QR factor of hashed signs."""
    signs = hashed_signs(name, in_dim * out_dim).view(out_dim, in_dim).double()
    q, r = torch.linalg.qr(signs)
    return (q * torch.sign(torch.diagonal(r))).T.float().contiguous()


def _pixels(frames: Frames, request: FrameRequest) -> Float[Tensor, "frames 3 height width"]:
    """Frames as float32 in [0, 1]; ValueError unless they match `request`."""
    return checked_frames(frames, request).float() / 255.0


def _luma(pixels: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames height width"]:
    return torch.einsum("tchw,c->thw", pixels, torch.tensor(LUMA))


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """Colour layout, colour statistics and edge directions of each frame, projected to 1024 and scaled to length 1.

    Colours are relative to the frame's median colour, so that the background does not dominate the objects on it.
    """

    name: str = "embedded-image-1"
    width: int = IMAGE_WIDTH
    request: FrameRequest = IMAGE_REQUEST

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Float[Tensor, "frames 1024"]:
        pixels = _pixels(frames, self.request)
        median = pixels.flatten(2).median(dim=2).values
        relative = pixels - median[:, :, None, None]
        layout = functional.adaptive_avg_pool2d(relative, 8).flatten(1)
        saturation = pixels.amax(1) - pixels.amin(1)
        parts = [
            2.0 * layout,
            0.5 * (median - 0.4),
            2.0 * _chroma_histogram(pixels),
            2.0 * _edge_energies(_luma(pixels)),
            2.0 * functional.adaptive_avg_pool2d(saturation[:, None], 4).flatten(1),
        ]
        features = torch.cat(parts, dim=1)
        projected = features @ projection(self.name, features.shape[1], self.width)
        return functional.normalize(projected, dim=1, eps=1e-6)


def _chroma_histogram(pixels: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames 64"]:
    """Square root of the fraction of pixels in 8 x 8 cells of (r - g, (r + g) / 2 - b), spread linearly."""
    red, green, blue = pixels.flatten(2).unbind(1)
    place = torch.stack((red - green, (red + green) / 2 - blue), dim=-1)
    # Most natural colours lie within +-0.5 of grey; tanh spends the cells there.
    weights = (1 - (torch.tanh(2.0 * place) * 3.5 + 3.5 - torch.arange(8.0)[:, None, None, None]).abs()).clamp_min(0)
    return torch.einsum("atp,btp->tab", weights[..., 0], weights[..., 1]).flatten(1).div(place.shape[1]).sqrt()


def _edge_energies(luma: Float[Tensor, "frames height width"]) -> Float[Tensor, "frames 128"]:
    """Square root of the mean gradient magnitude in 8 directions (modulo 180 degrees) on a 4 x 4 grid."""
    padded = functional.pad(luma[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    strength = torch.sqrt(across.square() + down.square() + 1e-12)
    position = torch.remainder(torch.atan2(down, across), math.pi) / math.pi * 8
    apart = (position[:, None] - torch.arange(8.0)[:, None, None]).abs()
    weighted = (1 - torch.minimum(apart, 8 - apart)).clamp_min(0) * strength[:, None]
    return functional.adaptive_avg_pool2d(weighted, 4).clamp_min(0).sqrt().flatten(1)


@dataclass(frozen=True, kw_only=True)
class EmbeddedMotion:
    """Position, velocity and acceleration of moving brightness: 8 S slots, as many as Synchformer has for S segments.

    Synchformer's overlapping segments contain each instant twice, out of order, which a network does not learn to
    resolve in a few thousand steps. These slots are in order of time instead: slot k describes the instant
    (k + 1/2) / (8 S) of the clip, to which the network's nearest-neighbour upsampling assigns it. Each holds the values
    half a frame before and half a frame after that instant, interpolated between frames, so that velocity and
    acceleration of the centroids locate an impact between frames. The projection preserves distances; typical clips
    have a standard deviation near 1 per channel.
    """

    name: str = "embedded-motion-2"
    width: int = MOTION_WIDTH
    request: FrameRequest = MOTION_REQUEST
    gain: float = 3.4
    """Factor that makes the standard deviation per channel about 1 over rendered and filmed clips."""

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Float[Tensor, "slots 768"]:
        """(T, 3, 48, 48) -> (8 S, 768) with S = (T - 16) // 8 + 1. Raises ValueError when T < 16."""
        luma = _luma(_pixels(frames, self.request))
        if len(luma) < SEGMENT_FRAMES:
            raise ValueError(f"frames must be at least {SEGMENT_FRAMES} (one segment), got {len(luma)}")
        per_frame = torch.cat((_maps(luma), 3.0 * _trajectory(luma)), dim=1)
        slots = FEATURES_PER_SEGMENT * ((len(luma) - SEGMENT_FRAMES) // SEGMENT_STRIDE + 1)
        instant = (torch.arange(slots) + 0.5) * (len(luma) / slots) - 0.5
        around = torch.cat([_between(per_frame, instant + offset) for offset in (-0.5, 0.5)], dim=1)
        return self.gain * around @ projection(self.name, around.shape[1], self.width)


def _between(values: Float[Tensor, "frames features"], at: Float[Tensor, " slots"]) -> Float[Tensor, "slots features"]:
    """Linear interpolation between frames at fractional frame numbers, constant beyond both ends."""
    at = at.clamp(0, len(values) - 1)
    before = at.floor().long()
    after = (before + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[before], values[after], (at - before)[:, None])


def _change(values: Tensor) -> Tensor:
    """values[n] - values[n - 1], zero for the first."""
    return torch.cat((torch.zeros_like(values[:1]), values[1:] - values[:-1]))


def _bend(values: Tensor) -> Tensor:
    """values[n + 1] - 2 values[n] + values[n - 1], zero for the first and the last."""
    inner = values[2:] - 2 * values[1:-1] + values[:-2]
    return torch.cat((torch.zeros_like(values[:1]), inner, torch.zeros_like(values[:1])))


def _maps(luma: Float[Tensor, "frames 48 48"]) -> Float[Tensor, "frames 304"]:
    """Signed and absolute first and second differences on an 8 x 8 grid; profiles of the change by row and column."""
    change, bend = _change(luma), _bend(luma)
    grids = [functional.adaptive_avg_pool2d(x[:, None], 8).flatten(1) for x in (change, change.abs(), bend, bend.abs())]
    rows = [functional.adaptive_avg_pool1d(x.mean(2)[:, None], 16)[:, 0] for x in (change, change.abs())]
    columns = functional.adaptive_avg_pool1d(change.abs().mean(1)[:, None], 16)[:, 0]
    return torch.cat([torch.tanh(12.0 * x) for x in grids] + [torch.tanh(30.0 * x) for x in (*rows, columns)], dim=1)


def _trajectory(luma: Float[Tensor, "frames 48 48"]) -> Float[Tensor, "frames 29"]:
    """Scalars over time: amounts of change, brightest spots, and centroids with their velocity and acceleration."""
    change, bend = _change(luma), _bend(luma)
    still = luma.median(dim=0).values
    apart = (luma - still).abs()
    brightest = luma.flatten(1).topk(16, dim=1).values.mean(1, keepdim=True)
    darkest = -(-luma).flatten(1).topk(16, dim=1).values.mean(1, keepdim=True)
    mean = luma.mean((1, 2))[:, None]
    amounts = [
        40.0 * _change(mean),
        40.0 * _bend(mean),
        20.0 * change.clamp_min(0).mean((1, 2))[:, None],
        20.0 * (-change).clamp_min(0).mean((1, 2))[:, None],
        20.0 * bend.abs().mean((1, 2))[:, None],
        3.0 * change.abs().amax((1, 2))[:, None],
        3.0 * _change(brightest),
        3.0 * _bend(brightest),
        3.0 * _change(darkest),
    ]
    moving = _centroid(change.abs())
    figure = _centroid(apart)
    paths = [moving, figure, 6.0 * _change(figure), 6.0 * _bend(figure), 2.0 * _change(moving)]
    return torch.tanh(torch.cat(amounts + paths, dim=1))


def _centroid(weights: Float[Tensor, "frames 48 48"]) -> Float[Tensor, "frames 4"]:
    """(x, y) in [-1, 1] from the centre, spread, and amount of what exceeds 0.03 (below is coding noise)."""
    strong = (weights - 0.03).clamp_min(0)
    total = strong.sum((1, 2))
    confident = total / (total + 0.5)
    axis = torch.linspace(-1, 1, weights.shape[1])
    x = (strong.sum(1) * axis).sum(1) / (total + 1e-3)
    y = (strong.sum(2) * axis).sum(1) / (total + 1e-3)
    spread = (strong.sum(1) * (axis - x[:, None]).square()).sum(1) + (strong.sum(2) * (axis - y[:, None]).square()).sum(
        1
    )
    spread = torch.sqrt(spread / (total + 1e-3) + 1e-8)
    return torch.stack((x, y, spread, torch.log1p(total) / 4), dim=1) * confident[:, None]


@dataclass(frozen=True, kw_only=True)
class EmbeddedText:
    """A hashed unit vector per word, its place, and the mean of the words so far, scaled to length 1 at 77 positions.

    A padding position is a constant vector plus the mean of all words, so that the mean over positions, which the
    network uses, still depends on the words (in CLIP causal attention has this effect). Words are lower-cased runs of
    letters and digits; those after the 77th are ignored.
    """

    name: str = "embedded-text-1"
    width: int = TEXT_WIDTH
    positions: int = TEXT_POSITIONS
    shared_positions: int = 0
    """No position has the same feature for all captions."""
    place_weight: float = 0.15
    context_weight: float = 1.0

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "batch 77 1024"]:
        if isinstance(texts, str):
            raise ValueError("texts must be a list of strings, got one string")
        return torch.stack([self._encode(text) for text in texts])

    def _encode(self, text: str) -> Float[Tensor, "77 1024"]:
        words = re.findall(r"\w+", text.lower())[:TEXT_POSITIONS]
        rows = torch.stack(
            [_unit_vector(f"word {w}") for w in words] + [_unit_vector("pad")] * (TEXT_POSITIONS - len(words))
        )
        if words:
            count = torch.arange(1, len(words) + 1)[:, None]
            context = rows[: len(words)].cumsum(0) / count
            context = functional.normalize(
                torch.cat((context, context[-1:].expand(TEXT_POSITIONS - len(words), -1))), dim=1
            )
            places = torch.stack([_unit_vector(f"place {i}") for i in range(len(words))])
            rows = rows + self.context_weight * context
            rows[: len(words)] += self.place_weight * places
        return functional.normalize(rows, dim=1)


@functools.lru_cache(maxsize=4096)
def _unit_vector(name: str) -> Float[Tensor, " width"]:
    return hashed_signs(f"embedded-text-1 {name}", TEXT_WIDTH) / math.sqrt(TEXT_WIDTH)
