"""Timestep and rotary embeddings of MMAudio (arXiv 2412.15322, section 3; released configuration)."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

SMOOTH_LIMIT = 100.0
"""Fastest frequency of a smooth time embedding, rad per unit of time. In a small trained v2 network d_t u has 120 times
the size of u with frequencies up to 10,000, 1.7 times up to 100, and 0.9 times up to 3 (docs/methods/recipes.md)."""
FIT_INTERVALS = 8192
"""Steps of the grid on which one embedding is fitted to another: 5 to a period of the fastest frequency of v2."""
FIT_RIDGE = 1e-4
"""Pull towards the weights the fit starts from, as a fraction of the features' mean square. At hidden 256 the fit's
error is within 2 % of that at 1e-6, whose weights are ten times as large."""


class TimestepEmbedder(nn.Module):
    """(B,) times in [0, 1] -> (B, hidden): Linear(SiLU(Linear([cos(t w), sin(t w)]))), cosine first.

    v1: 256 features, w_i = 10000^(-2i/256), from 1 down to 1e-4 rad per unit. v2: `hidden` features, the same law times
    10^4. Frequencies and products stay in float32 whatever the module's dtype. "smooth" is for networks that are
    differentiated in time: the part of the table up to 100 rad, all of it for v1, the slower half, down to 1 rad, for
    v2, whose first layer then has half the columns.

    precision "bfloat16" is what happens in MMAudio's demo, where the whole network is cast: frequencies and time are
    rounded to bfloat16, their product is float32, the features are rounded again. At t = 0.28 and 0.96 the phases of v1
    move by at most 0.001 and 0.002 rad, those of v2 (hidden 896) by up to 11.6 and 35.4 rad, with 42 and 48 % of the
    frequencies off by more than 0.1 rad; over the demo's 25 times the extremes are 0.003 rad (v1) and 42 rad (v2).
    """

    def __init__(
        self,
        hidden_dim: int,
        version: str,
        precision: Literal["float32", "bfloat16"] = "float32",
        frequencies: Literal["published", "smooth"] = "published",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.table = 256 if version == "v1" else hidden_dim
        self.scale = 1.0 if version == "v1" else 1e4
        # 1e4 * 10000^(-2i / hidden) <= 100 from i = hidden / 4 on.
        self.skipped = -(-hidden_dim // 4) if version == "v2" and frequencies == "smooth" else 0
        self.features = self.table - 2 * self.skipped
        self.mlp = nn.Sequential(nn.Linear(self.features, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim))

    @property
    def weight_dtype(self) -> torch.dtype:
        """Type of the embedding's weights."""
        return next(self.mlp.parameters()).dtype

    @property
    def fastest(self) -> float:
        """The largest frequency, rad per unit of time."""
        fastest: float = self.scale / 10_000.0 ** (2 * self.skipped / self.table)
        return fastest

    def frequencies(self, t: Tensor) -> Tensor:
        """Frequencies w of the embedding, (features / 2,), float32 or wider."""
        wide = torch.float64 if t.dtype == torch.float64 else torch.float32
        i = torch.arange(2 * self.skipped, self.table, 2, dtype=wide, device=t.device)
        return self.scale / 10_000.0 ** (i / self.table)

    def phases(self, t: Tensor) -> Tensor:
        """Phases t w of times t (B,): (B, features / 2), float32 or wider."""
        freqs = self.frequencies(t)
        t = t.to(freqs.dtype)
        if self.precision == "bfloat16":
            t, freqs = _rounded(t), _rounded(freqs)
        return t[:, None] * freqs

    def forward(self, t: Tensor) -> Tensor:
        with _without_autocast(t.device.type):
            phases = self.phases(t)
            features = torch.cat([torch.cos(phases), torch.sin(phases)], dim=1)
            if self.precision == "bfloat16":
                features = _rounded(features)
        embedded: Tensor = self.mlp(features.to(self.weight_dtype))
        return embedded


class EmbeddingFit(NamedTuple):
    """How far one time embedding is from another: rms of the difference over t in [0, 1]."""

    error: float
    """Relative to the rms of the embedding."""
    variation: float
    """Relative to the rms of what varies with t in it; 1 = no better than a constant."""


@torch.no_grad()
def fit_smooth(smooth: TimestepEmbedder, published: TimestepEmbedder) -> EmbeddingFit:
    """Give `smooth` the weights with which it follows `published`, in place; how far it is afterwards.

    Its hidden layer takes the published weights of the frequencies it has, so that a network that uses no others is
    reproduced as it is. With H (T, hidden + 1) its hidden features and a column of ones on a grid of times, E the
    published embedding and W0 the published last layer, the new last layer is, in float64,

        W = W0 + argmin_D ||H D - (E - H W0)||^2 + FIT_RIDGE |H|^2 ||D||^2,    |H|^2 the mean square column of H.

    Raises ValueError where the two have no common table of frequencies.
    """
    if (smooth.table, smooth.scale) != (published.table, published.scale) or published.skipped:
        raise ValueError("a smooth time embedding follows a published one of the same version and width")
    old, new = (copy.deepcopy(module).double() for module in (published, smooth))
    weights = old.mlp.state_dict()
    weights["0.weight"] = weights["0.weight"].unflatten(1, (2, -1))[:, :, new.skipped :].flatten(1)
    new.mlp.load_state_dict(weights)
    last, device = new.mlp[2], weights["0.weight"].device
    assert isinstance(last, nn.Linear)
    t = torch.linspace(0, 1, FIT_INTERVALS + 1, dtype=torch.float64, device=device)
    residual = old(t) - new(t)
    phases = new.phases(t)
    hidden = new.mlp[:2](torch.cat([phases.cos(), phases.sin()], dim=1))
    h = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
    gram = h.T @ h
    gram.diagonal().add_(FIT_RIDGE * gram.diagonal().mean())
    correction = torch.linalg.solve(gram, h.T @ residual)
    last.weight.add_(correction[:-1].T)
    last.bias.add_(correction[-1])
    smooth.load_state_dict(new.state_dict())
    return compare_embeddings(smooth, published)


@torch.no_grad()
def compare_embeddings(a: TimestepEmbedder, b: TimestepEmbedder) -> EmbeddingFit:
    """The difference of `a` from `b`, in float64, at times half way between those of the fit."""
    device = next(b.parameters()).device
    t = (torch.arange(FIT_INTERVALS, dtype=torch.float64, device=device) + 0.5) / FIT_INTERVALS
    made, wanted = (copy.deepcopy(module).double()(t) for module in (a, b))
    error = (made - wanted).square().mean().sqrt()
    varying = wanted - wanted.mean(0)
    return EmbeddingFit(*((error / x.square().mean().sqrt()).item() for x in (wanted, varying)))


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast off, where it is on: torch.export takes minutes to remove fifty regions in which nothing changes."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


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
    with _without_autocast(x.device.type):
        even, odd = x[..., 0::2].to(table.cos.dtype), x[..., 1::2].to(table.cos.dtype)
        rotated = torch.stack([table.cos * even - table.sin * odd, table.sin * even + table.cos * odd], dim=-1)
    return rotated.flatten(-2).to(x.dtype)
