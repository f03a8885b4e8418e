"""Classifier-free guidance: mixing velocities for training, combining predictions for sampling.

omega is the guidance scale with **1 = off** everywhere. Sampling rules compute in float32 (float64 for float64 inputs)
whatever the precision of the predictions, and return the precision of the strongest prediction.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meanflow.shapes import Latent, PerSample, Time, expand_right

DEFAULT_OMEGA = ((1, 1.4), (2, 2.0), (4, 2.75), (25, 4.5))
"""The pairs (steps, omega) between which `default_omega` interpolates."""


@dataclass(frozen=True, kw_only=True)
class MixedGuidance:
    """Guided velocity of MeanFlow training (arXiv 2505.13447, eq. 19 and appendix).

    v_g = omega v + kappa v_cond + (1 - omega - kappa) v_uncond where t lies in `interval`, else v.
    The effective scale is omega / (1 - kappa).
    """

    omega: float = 1.0
    """Weight of v; the effective guidance scale is omega / (1 - kappa), 1 = off."""
    kappa: float = 0.0
    """Weight of the model's own v_cond; 0 = off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t at which the velocity is guided; elsewhere it is v."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.kappa < 1.0:
            raise ValueError(f"kappa must lie in [0, 1), got {self.kappa}")
        check_interval(self.interval)

    def __call__(self, v: Latent, v_cond: Latent, v_uncond: Latent, t: Time) -> Latent:
        mixed = self.omega * v + self.kappa * v_cond + (1 - self.omega - self.kappa) * v_uncond
        return torch.where(expand_right(inside(t, self.interval), v), mixed, v)


class Guided(NamedTuple):
    """Combined prediction (B, N, C) in the precision of the strongest one, and what the rescaling did.

    s_star: the scalars applied to the weaker predictions after clamping, (B,), or (B, 2) where there are two pairs;
    ones where rescaling is off. clamped: where the clamp changed them, same shape; logs state its mean.
    """

    value: Latent
    s_star: Float[Tensor, " batch *pairs"]
    clamped: Bool[Tensor, " batch *pairs"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance with scalar rescaling, which limits the spread of one step, not its overshoot.

    s* = <p_c, p_u> / ||p_u||^2 per sample over all other dimensions: the least-squares projection of the conditional
    prediction on the unconditional one (CFG-Zero*, arXiv 2503.18886, eq. 10; used for one-step generation by MF-MJT,
    arXiv 2509.06389). Then

        p = s* p_u + omega (p_c - s* p_u) = p_c + (omega - 1) push,      push = p_c - s* p_u

    `parallel` and `rms_threshold` act on the push and `std_rescale` on the result; they are off by default, s* is on.
    """

    separates_video: ClassVar[bool] = False
    """Whether the rule also needs a prediction on the video without the text."""

    omega: float = 1.0
    """Scale, 1 = off."""
    rescale: bool = True
    """Use s*; without it s* = 1, plain guidance."""
    clamp: tuple[float, float] = (0.0, 2.0)
    """Bounds of s*, which is ill-conditioned where the unconditional prediction is small."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t at which guidance applies, t being that of the state from which a step starts (1 for a single step).
    Outside, the conditional prediction is used alone."""
    std_rescale: float = 0.0
    """phi: the result is multiplied by phi std(p_c) / std(p) + 1 - phi, standard deviations per sample (arXiv
    2305.08891, section 3.4); 0 = off, 1 keeps the standard deviation of p_c."""
    parallel: float = 1.0
    """Weight of the part of the push that is parallel to p_c; 1 = off, 0 removes it. Projected guidance (APG, arXiv
    2410.02416) without its momentum, and on the prediction itself, where the paper projects denoised data."""
    rms_threshold: float | None = None
    """The push is shortened to this root mean square before it is projected; None = off. APG's norm threshold divided
    by the square root of the number of elements, so that it does not depend on the length of a sound."""

    def __post_init__(self) -> None:
        if not self.omega >= 0.0:
            raise ValueError(f"omega must be at least 0 (1 = no guidance), got {self.omega}")
        _check_fraction("std_rescale", self.std_rescale)
        _check_fraction("parallel", self.parallel)
        if self.rms_threshold is not None and not self.rms_threshold > 0.0:
            raise ValueError(f"rms_threshold must be positive or None (off), got {self.rms_threshold}")
        _check_clamp(self.clamp)
        check_interval(self.interval)

    @property
    def active(self) -> bool:
        """Whether an unconditional evaluation is needed at all."""
        return self.omega != 1.0

    @property
    def evaluations(self) -> int:
        """Predictions that one guided prediction is made of."""
        return 2 if self.active else 1

    def __call__(self, p_cond: Latent, p_uncond: Latent, t: Time) -> Guided:
        cond, uncond = _wide(p_cond), _wide(p_uncond)
        s_star, clamped = _scalar(cond, uncond, self.clamp if self.rescale else None)
        push = cond - expand_right(s_star, uncond) * uncond
        if self.rms_threshold is not None:
            push = push * expand_right((self.rms_threshold / _rms(push)).clamp(max=1.0), push)
        if self.parallel != 1.0:
            push = push - (1 - self.parallel) * expand_right(_projection(push, cond), cond) * cond
        value = _with_std_of(cond, cond + (self.omega - 1) * push, self.std_rescale)
        return Guided(_where_inside(t, self.interval, value, p_cond), s_star, clamped)

    def s_star(self, p_cond: Latent, p_uncond: Latent) -> PerSample:
        """The clamped rescaling scalar, (B,); all ones when rescale is off."""
        return _scalar(_wide(p_cond), _wide(p_uncond), self.clamp if self.rescale else None)[0]


@dataclass(frozen=True, kw_only=True)
class JointGuidance:
    """Separate scales for two conditions, video and text, from three predictions p_none, p_video and p_both.

        p = p_none + w_video (p_video - p_none) + w_text (p_both - p_video)
          = p_both + (w_video - 1) (p_video - p_none) + (w_text - 1) (p_both - p_video)

    This is section 3.2 of arXiv 2211.09800. With `rescale` each pair of the second form gets the scalar of
    `Guidance`: s_1 p_none for p_none, s_2 p_video for the p_video that is subtracted, s_1 and s_2 being the projections
    of p_video on p_none and of p_both on p_video; scales of 1 still give p_both. Equal scales without rescaling are
    plain guidance from p_none to p_both.
    """

    separates_video: ClassVar[bool] = True

    video: float = 1.0
    """w_video, 1 = off."""
    text: float = 1.0
    """w_text, 1 = off."""
    rescale: bool = True
    clamp: tuple[float, float] = (0.0, 2.0)
    interval: tuple[float, float] = (0.0, 1.0)
    std_rescale: float = 0.0
    """`rescale`, `clamp`, `interval` and `std_rescale` are as in `Guidance`, with p_both in place of p_c."""

    def __post_init__(self) -> None:
        for name in ("video", "text"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0 (1 = no guidance), got {getattr(self, name)}")
        _check_fraction("std_rescale", self.std_rescale)
        _check_clamp(self.clamp)
        check_interval(self.interval)

    @property
    def active(self) -> bool:
        """Whether the two weaker evaluations are needed at all."""
        return self.video != 1.0 or self.text != 1.0

    @property
    def evaluations(self) -> int:
        """Predictions that one guided prediction is made of."""
        return 3 if self.active else 1

    def __call__(self, p_both: Latent, p_video: Latent, p_none: Latent, t: Time) -> Guided:
        both, video, none = _wide(p_both), _wide(p_video), _wide(p_none)
        bounds = self.clamp if self.rescale else None
        (s_1, clamped_1), (s_2, clamped_2) = _scalar(video, none, bounds), _scalar(both, video, bounds)
        value = both + (self.video - 1) * (video - expand_right(s_1, none) * none)
        value = value + (self.text - 1) * (both - expand_right(s_2, video) * video)
        value = _where_inside(t, self.interval, _with_std_of(both, value, self.std_rescale), p_both)
        return Guided(value, torch.stack([s_1, s_2], 1), torch.stack([clamped_1, clamped_2], 1))


GuidanceRule: TypeAlias = Guidance | JointGuidance
"""How predictions are combined while sampling."""


def default_omega(num_steps: int) -> float:
    """A starting scale for a number of steps: 1.4, 2, 2.75, 4.5 at 1, 2, 4, 25 steps, linear in log(steps) between.

    More steps than 25 get 4.5. Guiding an average velocity overshoots by the factor omega in one step, while many
    steps saturate, so a scale must grow with the number of steps to push equally far. Origin of the numbers:

        25: 4.5   what the published MMAudio weights are sampled with (arXiv 2412.15322)
        1: 1.4    best compromise of the project's own one-step student (CHANGELOG: FD, onset F1)
        2, 4      from closed form: data of class mean m = 1 and standard deviation 0.5 among all data N(0, m^2 + 0.25);
                  with these scales the guided class mean is 1.37 to 1.40 m for 1, 2, 4 and 25 jumps alike

    They are no optimum for other weights: the project's small teacher, for one, is best at 1.2 to 1.4 with 25 steps.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    for (n, low), (m, high) in pairwise(DEFAULT_OMEGA):
        if num_steps <= m:
            return low + (high - low) * math.log(num_steps / n) / math.log(m / n)
    return DEFAULT_OMEGA[-1][1]


def _wide(p: Tensor) -> Tensor:
    return p if p.dtype == torch.float64 else p.float()


def _scalar(cond: Tensor, uncond: Tensor, bounds: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """s* (B,) of wide predictions within its bounds, ones without bounds; and where they changed it."""
    if bounds is None:
        return cond.new_ones(len(cond)), torch.zeros(len(cond), dtype=torch.bool, device=cond.device)
    free = _projection(cond, uncond)
    s_star = free.clamp(*bounds)
    return s_star, s_star != free


def _projection(a: Tensor, b: Tensor) -> Tensor:
    """The scalar k (B,) that minimises ||a - k b||; 0 for b = 0."""
    a, b = a.flatten(1), b.flatten(1)
    return (a * b).sum(1) / ((b * b).sum(1) + 1e-8)


def _rms(a: Tensor) -> Tensor:
    return a.flatten(1).square().mean(1).sqrt().clamp(min=1e-30)


def _with_std_of(reference: Tensor, value: Tensor, phi: float) -> Tensor:
    if phi == 0.0:
        return value
    wanted, have = (p.flatten(1).std(1, correction=0) for p in (reference, value))
    factor = torch.where(have > 0, wanted / have.clamp(min=1e-30), 1.0)
    return expand_right(phi * factor + 1 - phi, value) * value


def _where_inside(t: Tensor, interval: tuple[float, float], value: Tensor, otherwise: Tensor) -> Tensor:
    """In the dtype of `otherwise`."""
    return torch.where(expand_right(inside(t, interval), value), value.to(otherwise.dtype), otherwise)


def inside(t: Time, interval: tuple[float, float]) -> Bool[Tensor, " batch"]:
    """Rows whose time lies in the interval, ends included."""
    return (t >= interval[0]) & (t <= interval[1])


def check_interval(interval: tuple[float, float]) -> None:
    """Raises ValueError unless 0 <= start <= end <= 1."""
    if not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(f"interval must satisfy 0 <= start <= end <= 1, got {interval}")


def _check_clamp(clamp: tuple[float, float]) -> None:
    if not clamp[0] <= clamp[1]:
        raise ValueError(f"clamp must be (low, high) with low <= high, got {clamp}")


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
