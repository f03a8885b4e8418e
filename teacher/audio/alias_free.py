"""Snake-beta without aliasing (BigVGAN, arXiv 2206.04658, section 3.2): upsample by 2, activate, downsample by 2.

    snake(x) = x + sin(x e^alpha)^2 / (e^beta + 1e-9)                     alpha and beta per channel
    u[m]     = 2 sum_i x[i] h[m + 5 - 2 i],   y[n] = sum_k snake(u)[2 n + k - 5] h[k]       edge samples are repeated

h is a 12-tap Kaiser-windowed sinc. Both resamplers are products of overlapping blocks of the signal with small banded
matrices. On the CPU a chunk of rows goes through all three steps while it lies in the cache, two to five times as fast
as the usual way (padding, a transposed convolution per channel, cropping, padding, a convolution per channel).
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn

TAPS = 12
CUTOFF = 0.25
"""Cycles per sample at the upsampled rate: the original Nyquist frequency."""
HALF_WIDTH = 0.3
"""Half the width of the transition band, in cycles per sample at the upsampled rate."""
HALF_OF_THE_TAPS = (
    0.0020289646927267313, 0.009389465674757957, -0.0255434587597847, -0.057657383382320404, 0.12857258319854736,
    0.44320979714393616,
)  # fmt: skip
"""The first six taps of the filter h, which is symmetric."""
SNAKE_EPS = 1e-9
BLOCK = 16
"""Input samples per row of the matrix products."""
UP_MARGIN, DOWN_MARGIN = 4, 8
"""Repeated samples at each edge; 3 and 6 would do, but multiples of 4 align the rows of the products in memory."""
CPU_CHUNK, DEVICE_CHUNK = 2**16, 2**24
"""Samples processed together: on the CPU what fits into a core's second-level cache, elsewhere a bound on memory."""


@functools.lru_cache(maxsize=1)
def kaiser_sinc_filter() -> Float[Tensor, " taps"]:
    """The lowpass filter h: windowed sinc with Kaiser's beta for this transition band, summing to 1; float32.

    Kaiser's attenuation A = 2.285 (TAPS / 2 - 1) pi 4 HALF_WIDTH + 7.95 = 51.0 dB, beta = 0.1102 (A - 8.7) = 4.6638.
    The taps equal those stored in published generators to the last bit. They are constants, because recomputing them
    in float32 (sine, Bessel function) would give other last bits on other processors.
    """
    with torch.inference_mode(False):
        half = torch.tensor(HALF_OF_THE_TAPS, dtype=torch.float32, device="cpu")
        return torch.cat((half, half.flip(0)))


@functools.lru_cache(maxsize=16)
def resamplers(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Banded matrices that resample one block of samples by 2.

    Upsampling has shape (BLOCK + 2 UP_MARGIN, 2 BLOCK), downsampling (2 BLOCK + 2 DOWN_MARGIN, BLOCK).
    """
    with torch.inference_mode(False):
        taps = kaiser_sinc_filter().double()
        up = torch.zeros(BLOCK + 2 * UP_MARGIN, 2 * BLOCK, dtype=torch.float64, device="cpu")
        down = torch.zeros(2 * BLOCK + 2 * DOWN_MARGIN, BLOCK, dtype=torch.float64, device="cpu")
        for m in range(2 * BLOCK):
            for row in range(len(up)):
                k = m + 5 - 2 * (row - UP_MARGIN)
                if 0 <= k < TAPS:
                    up[row, m] = 2 * taps[k]
        for n in range(BLOCK):
            first = 2 * n - 5 + DOWN_MARGIN
            down[first : first + TAPS, n] = taps
        return up.to(device, dtype), down.to(device, dtype)


def _hold(x: Float[Tensor, "rows time"], left: int, right: int) -> Float[Tensor, "rows padded"]:
    return torch.cat([x[:, :1].expand(-1, left), x, x[:, -1:].expand(-1, right)], dim=1)


def _blockwise(x: Float[Tensor, "rows padded"], matrix: Float[Tensor, "window made"], step: int) -> Tensor:
    """Windows of x, `step` samples apart, times `matrix`, one after the other; all rows at once, no window is copied.

    A window is a block of `step` samples and the start of the next block, so two products are added. The last window of
    a row reads into the next row, so the caller drops its output.
    """
    blocks = x.view(-1, step)
    made = blocks @ matrix[:step]
    made[:-1].addmm_(blocks[1:, : len(matrix) - step], matrix[step:])
    return made.view(len(x), -1)


def upsample(x: Float[Tensor, "rows time"]) -> Float[Tensor, "rows doubled"]:
    """Upsample rows by 2 with the lowpass filter h: gain 1; the edge samples are repeated beyond the ends."""
    length, tail = x.shape[1], -x.shape[1] % BLOCK
    matrix, _ = resamplers(x.dtype, x.device)
    return _blockwise(_hold(x, UP_MARGIN, tail + BLOCK - UP_MARGIN), matrix, BLOCK)[:, : 2 * length]


def downsample(u: Float[Tensor, "rows doubled"]) -> Float[Tensor, "rows time"]:
    """Downsample rows by 2 after the lowpass filter h; the edge samples are repeated. The length must be even."""
    length = u.shape[1] // 2
    tail = -length % BLOCK
    _, matrix = resamplers(u.dtype, u.device)
    return _blockwise(_hold(u, DOWN_MARGIN, 2 * (tail + BLOCK) - DOWN_MARGIN), matrix, 2 * BLOCK)[:, :length]


def _activate(x: Tensor, frequency: Tensor, height: Tensor) -> Tensor:
    """Up, x + height sin^2(frequency x), down; (rows, time) with one frequency and height per row."""
    u = upsample(x)
    if torch.is_grad_enabled():
        sine = torch.sin(u * frequency)
        return downsample(torch.addcmul(u, sine * sine, height))
    sine = torch.mul(u, frequency).sin_()
    return downsample(u.addcmul_(sine.mul_(sine), height))


def anti_aliased_snake(
    x: Float[Tensor, "batch channels time"], alpha: Float[Tensor, " channels"], beta: Float[Tensor, " channels"]
) -> Float[Tensor, "batch channels time"]:
    """Snake-beta x + sin(x e^alpha)^2 / (e^beta + 1e-9) at twice the sample rate, so that it does not alias.

    alpha and beta are logarithms, one per channel. The result of a row does not depend on the other rows.
    """
    batch, channels, length = x.shape
    frequency = alpha.exp().repeat(batch)[:, None]
    height = beta.exp().add(SNAKE_EPS).reciprocal().repeat(batch)[:, None]
    cached = x.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler would unroll every chunk
    chunk = max(1, (CPU_CHUNK if cached else DEVICE_CHUNK) // max(1, length))
    parts = zip(*(part.split(chunk) for part in (x.reshape(-1, length), frequency, height)), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([_activate(*part) for part in parts]).view(batch, channels, length)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for made, part in zip(out.view(-1, length).split(chunk), parts, strict=True):
        made.copy_(_activate(*part))
    return out


class SnakeBeta(nn.Module):
    """Holds the parameters alpha and beta of snake-beta, one each per channel, as logarithms; it computes nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))


class AliasFreeSnake(nn.Module):
    """`anti_aliased_snake` with its parameters, whose names are those of published generators."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)

    def forward(self, x: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch channels time"]:
        return anti_aliased_snake(x, self.act.alpha, self.act.beta)
