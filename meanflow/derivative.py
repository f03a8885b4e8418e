"""Total derivative of an average velocity along the flow, du/dt = (v . grad_x) u + d_t u with r fixed.

This is the Jacobian-vector product of u at (x_t, r, t) with tangents (v, 0, 1) (arXiv 2505.13447, eq. 8). It only
enters targets under stop-gradient, as the `Correction` (t - r) du/dt, so everything here returns tensors without graph.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow.attention import exact_tangents
from meanflow.shapes import AverageVelocity, Latent, OnRows, Predict, Time, expand_right, on_moving_rows
from meanflow.tangents import SparingRules

PROBE = 1e-2
"""Step along the flow at which a function that seems constant is evaluated again."""
DerivativeKind: TypeAlias = Literal["none", "exact", "difference"]
"""How a network is differentiated in time; differences need float32 without autocast."""
REFUSED_IN_COMPILED = "ForwardAD inside a compiled function may lose tangents; compile the network, not what calls this"


@dataclass(frozen=True, kw_only=True)
class ForwardAD:
    """Exact derivative by forward-mode differentiation (torch.func.jvp).

    Networks that attend through `meanflow.attention` get exact tangents by the kernel or the chunks chosen there; any
    other scaled_dot_product_attention runs its MATH form inside, since fused kernels have no forward-mode formula.
    Works under autocast, no_grad and inference mode, through activation checkpointing with use_reentrant=False, and on
    compiled modules, which run uncompiled here and compiled elsewhere.

    Raises RuntimeError where the result would be wrong: if u draws random numbers (dropout), or loses the tangent (by
    inference_mode or detach, if that leaves nothing of it), inside a compiled function, and where an operator has no
    forward mode.
    """

    kind: ClassVar[DerivativeKind] = "exact"

    def __call__(self, u_fn: AverageVelocity, x_t: Latent, r: Time, t: Time, v: Latent) -> Latent:
        if torch.compiler.is_compiling():
            raise RuntimeError(REFUSED_IN_COMPILED)
        primals = (x_t, r, t)
        tangents = (v.to(x_t.dtype), torch.zeros_like(r), torch.ones_like(t))
        with torch.no_grad(), _forward_mode(), _same_randomness(x_t, "ForwardAD"):
            try:
                dudt: Latent = torch.func.jvp(u_fn, primals, tangents, strict=True)[1]
            except (RuntimeError, NotImplementedError) as error:
                dudt = self._explained(error, u_fn, primals, tangents)
        if torch.is_autocast_enabled(x_t.device.type):
            torch.clear_autocast_cache()  # before torch 2.13 casts cached without a graph served the next forward too
        return dudt.detach()

    def _explained(
        self,
        error: Exception,
        u_fn: AverageVelocity,
        primals: tuple[Tensor, Tensor, Tensor],
        tangents: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """Zero for a function that really does not depend on its arguments; else a RuntimeError explaining torch's."""
        text = str(error)
        if "independent of the inputs" in text or "inference tensor" in text:
            here = u_fn(*primals)
            there = u_fn(*(x + PROBE * dx for x, dx in zip(primals, tangents, strict=True)))
            if torch.equal(here, there):
                return torch.zeros_like(here)
            raise RuntimeError(
                "u loses the tangent of its arguments (inference_mode, detach or .data inside?); ForwardAD needs it"
            ) from error
        if "setup_context" in text or "must implement the jvp" in text:
            raise RuntimeError(
                "u calls a custom autograd.Function without forward mode (activation checkpointing with "
                "use_reentrant=True is one: set use_reentrant=False); CentralDifference needs none"
            ) from error
        if "forward AD" in text:
            raise RuntimeError(f"an operator of u has no forward mode; CentralDifference needs none: {text}") from error
        raise error


@dataclass(frozen=True, kw_only=True)
class CentralDifference:
    """du/dt ~ [u(x_t + eps v, r, t + eps) - u(x_t - eps v, r, t - eps)] / (2 eps), error O(eps^2).

    This needs no forward mode and so runs everywhere, but only in float32 or better: under bfloat16 the error reaches
    tens of per cent. t +- eps may leave [0, 1] by eps, where the network is smooth.

    Raises ValueError for lower precision, of the state, of the result or by autocast, and RuntimeError if u draws
    random numbers, which would differ between the two ends.
    """

    kind: ClassVar[DerivativeKind] = "difference"
    eps: float = 1e-3
    """Half the distance in t between the two evaluations."""

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < 0.1:
            raise ValueError(f"eps must lie in (0, 0.1), got {self.eps}")

    def __call__(self, u_fn: AverageVelocity, x_t: Latent, r: Time, t: Time, v: Latent) -> Latent:
        wide = (torch.float32, torch.float64)
        if x_t.dtype not in wide or t.dtype not in wide or torch.is_autocast_enabled(x_t.device.type):
            raise ValueError("CentralDifference needs float32 or float64 without autocast; use ForwardAD")
        with torch.no_grad(), _same_randomness(x_t, "CentralDifference"):
            ahead = u_fn(x_t + self.eps * v, r, t + self.eps)
            behind = u_fn(x_t - self.eps * v, r, t - self.eps)
        if ahead.dtype not in wide:
            raise ValueError(f"CentralDifference needs float32 or float64, u answered in {ahead.dtype}; use ForwardAD")
        return (ahead - behind) / (2 * self.eps)


TotalDerivative: TypeAlias = ForwardAD | CentralDifference


@dataclass(frozen=True, kw_only=True)
class Correction:
    """c = (t - r) du/dt without a graph. Rows with r = t get zero and cost nothing.

    Three switches keep the early spikes of c from ruling a training run. In this order, with rms the root mean square
    over one row: warm-up, c <- min(1, progress / warmup) c (rCM's tangent warm-up); normalisation,
    c <- c / (rms(c) + normalise) (sCM, arXiv 2410.11081, section 4.2); clipping, c <- c min(1, clip / rms(c)). Each is
    off at 0.
    """

    derivative: TotalDerivative = field(default_factory=ForwardAD)
    clip: float = 0.0
    """Largest root mean square of (t - r) du/dt per row; 0 = no bound."""
    normalise: float = 0.0
    """Constant of tangent normalisation (0.1 in sCM); 0 = off."""
    warmup: float = 0.0
    """Fraction of training over which the correction grows from zero to its full size."""

    def __post_init__(self) -> None:
        for name, value in (("clip", self.clip), ("normalise", self.normalise)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0 (0 = off), got {value}")
        if not 0.0 <= self.warmup <= 1.0:
            raise ValueError(f"warmup must lie in [0, 1], got {self.warmup}")

    def __call__(
        self, plain: OnRows, x_t: Latent, r: Time, t: Time, tangent: Latent, *, progress: float = 1.0
    ) -> Latent:
        """c (B, N, C), the derivative taken along (tangent, 0, 1) and only on rows with r < t."""

        def step(rows: Tensor, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
            dudt = self.derivative(_u_of(plain(rows)), x_t, r, t, tangent[rows])
            return self.stabilised(expand_right(t - r, dudt) * dudt, progress)

        return on_moving_rows(step, x_t, r, t, otherwise=torch.zeros_like(x_t))

    def stabilised(self, step: Tensor, progress: float) -> Tensor:
        """Warm-up, normalisation and clipping of (t - r) du/dt (M, N, C)."""
        if self.warmup:
            step = step * min(1.0, progress / self.warmup)
        if self.normalise:
            step = step / (_rms(step) + self.normalise)
        if self.clip:
            step = step * (self.clip / _rms(step).clamp(min=1e-12)).clamp(max=1.0)
        return step


def _u_of(predict: Predict) -> AverageVelocity:
    return lambda x_t, r, t: predict(x_t, r, t).u


def _rms(step: Tensor) -> Tensor:
    return expand_right(step.flatten(1).pow(2).mean(1).sqrt(), step)


def identity_residual(u: Latent, dudt: Latent, v: Latent, r: Time, t: Time) -> Latent:
    """u + (t - r) du/dt - v, which is zero for a true average velocity (arXiv 2505.13447, eq. 6)."""
    return u + expand_right(t - r, u) * dudt - v


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Attention with exact tangents, and compiled modules run as they were written.

    They would anyway, but a module first met inside torch.func stays uncompiled for good, and without a word. Where
    torch._dynamo has not been imported nothing is compiled, and importing it takes seconds.
    """
    with _uncompiled(), sdpa_kernel([SDPBackend.MATH]), exact_tangents(), SparingRules():
        yield


def _uncompiled() -> AbstractContextManager[object]:
    if torch.compiler.is_compiling():  # torch goes on frame by frame after the error above
        raise RuntimeError(REFUSED_IN_COMPILED)
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    try:
        return torch.compiler.set_stance("force_eager")
    except RuntimeError as error:  # and then runs what it cannot compile as it was written
        raise RuntimeError(REFUSED_IN_COMPILED) from error


@contextmanager
def _same_randomness(x_t: Tensor, name: str) -> Iterator[None]:
    """Refuses what draws from torch's default generators: the forward that is trained would draw other numbers."""
    before = _generator_states(x_t)
    yield
    if any(not torch.equal(a, b) for a, b in zip(before, _generator_states(x_t), strict=True)):
        raise RuntimeError(
            f"u draws random numbers (dropout in training mode?), so {name} would differentiate another function than "
            "the one trained; put dropout in eval mode or draw outside u"
        )


def _generator_states(x_t: Tensor) -> list[Tensor]:
    on_device = [torch.cuda.get_rng_state(x_t.device)] if x_t.is_cuda else []
    return [torch.get_rng_state(), *on_device]
