"""Timestep and rotary embeddings of MMAudio (arXiv 2412.15322, section 3; released configuration)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """(B,) times in [0, 1] -> (B, hidden): Linear(SiLU(Linear([cos(t w), sin(t w)]))), cosine first.

    v1: 256 features, w_i = 10000^(-2i/256), from 1 down to 1e-4 rad per unit. v2: `hidden` features, the same law times
    10^4. Frequencies and products stay in float32 whatever the module's dtype.

    precision "bfloat16" is what happens in MMAudio's demo, where the whole network is cast: frequencies and time are
    rounded to bfloat16, their product is float32, the features are rounded again. At t = 0.28 and 0.96 the phases of v1
    move by at most 0.001 and 0.002 rad, those of v2 (hidden 896) by up to 11.6 and 35.4 rad, with 42 and 48 % of the
    frequencies off by more than 0.1 rad; over the demo's 25 times the extremes are 0.003 rad (v1) and 42 rad (v2).
    """

    def __init__(self, hidden_dim: int, version: str, precision: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        self.precision = precision
        self.features = 256 if version == "v1" else hidden_dim
        self.scale = 1.0 if version == "v1" else 1e4
        self.mlp = nn.Sequential(nn.Linear(self.features, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim))

    @property
    def weight_dtype(self) -> torch.dtype:
        return next(self.mlp.parameters()).dtype

    def frequencies(self, t: Tensor) -> Tensor:
        """w, (features / 2,), float32 or wider."""
        wide = torch.float64 if t.dtype == torch.float64 else torch.float32
        i = torch.arange(0, self.features, 2, dtype=wide, device=t.device)
        return self.scale / 10_000.0 ** (i / self.features)

    def phases(self, t: Tensor) -> Tensor:
        """t w, (B, features / 2), float32 or wider."""
        freqs = self.frequencies(t)
        t = t.to(freqs.dtype)
        if self.precision == "bfloat16":
            t, freqs = _rounded(t), _rounded(freqs)
        return t[:, None] * freqs

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            phases = self.phases(t)
            features = torch.cat([torch.cos(phases), torch.sin(phases)], dim=1)
            if self.precision == "bfloat16":
                features = _rounded(features)
        embedded: Tensor = self.mlp(features.to(self.weight_dtype))
        return embedded


def _rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16 values, in the dtype they came in."""
    return x.to(torch.bfloat16).to(x.dtype)


class Rotary(NamedTuple):
    """cos and sin tables, (N, head_dim / 2) each, float32."""

    cos: Tensor
    sin: Tensor


def rotary(
    length: int, head_dim: int, *, scale: float = 1.0, device: torch.device, dtype: torch.dtype = torch.float32
) -> Rotary:
    """Tables for positions 0..length-1 with w_i = scale * 10000^(-2i/head_dim).

    Aligned RoPE: the image stream uses scale = N / Tc, so that both streams count in audio frames.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    i = torch.arange(0, head_dim, 2, dtype=wide, device=device)
    angle = torch.arange(length, dtype=wide, device=device)[:, None] * (scale * 10_000.0 ** (-i / head_dim))
    return Rotary(angle.cos(), angle.sin())


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotate adjacent channel pairs of x (B, heads, N, d): y0 = cos x0 - sin x1, y1 = sin x0 + cos x1."""
    with torch.autocast(x.device.type, enabled=False):
        even, odd = x[..., 0::2].to(table.cos.dtype), x[..., 1::2].to(table.cos.dtype)
        rotated = torch.stack([table.cos * even - table.sin * odd, table.sin * even + table.cos * odd], dim=-1)
    return rotated.flatten(-2).to(x.dtype)
